"""Job types: what a request may say, and its canonical form.

The rule: a job is described by a validated `JobRequest` or not at all; every face submits through it.
Field names and defaults are those of the fusion dialect; what that leaves open is this project's choice.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from engine.errors import Fault, InvalidRequest
from engine.jobs.hyperparams import (
    HYPERPARAMS,
    UNHASHED_DEFAULTS,
    ContractHyperparams,
    FinetuneHyperparams,
    Hyperparams,
    TrainHyperparams,
)

# Types that api.md names but no verb carries out yet, so that the answer to them is true.
PLANNED = ("align",)
OUTPUT_OF = "@"  # before the name of a job: the model that it makes
# Fields that requests of earlier versions had not: left empty they are no part of the hash, so that an idempotency key
# of then still means the same job.
_UNHASHED_EMPTY = ("after", "checkpoint_id", "more_dataset_ids", "project_id")

UUID_PATTERN = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
Reference = Annotated[str, Field(min_length=1, max_length=200)]


class JobRequest(BaseModel):
    """A request for a job, as every face submits it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = Field(description="train, finetune or contract")
    idempotency_key: str = Field(min_length=1, max_length=200)
    base_model_id: str | None = Field(
        None, min_length=1, max_length=200, description="Model to start from; @JOB is the one that a job makes."
    )
    source_model_id: str | None = Field(None, min_length=1, max_length=200, description="One of your own models.")
    checkpoint_id: str | None = Field(
        None,
        pattern=UUID_PATTERN,
        description="Checkpoint of an earlier finetune job to start from, in place of a model.",
    )
    dataset_id: str | None = Field(None, min_length=1, max_length=200)
    more_dataset_ids: list[Reference] = Field(
        default_factory=list, max_length=31, description="Datasets that are read after that one, as if they were one."
    )
    project_id: str | None = Field(None, min_length=1, max_length=200, description="Project that the job belongs to.")
    after: str | None = Field(
        None, min_length=1, max_length=200, description="Job that must be completed before this one starts."
    )
    hyperparams: Hyperparams = Field(default_factory=Hyperparams)  # type: ignore[arg-type]
    name: str | None = Field(None, min_length=1, max_length=100)
    tags: list[str] = Field(default_factory=list, max_length=32)
    notes: str = Field("", max_length=10_000)

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        if value in PLANNED:
            raise ValueError(f"'{value}' jobs are not in this version yet; available: {', '.join(HYPERPARAMS)}")
        if value not in HYPERPARAMS:
            raise ValueError(f"unknown job type '{value}'{_nearest(value, [*HYPERPARAMS, *PLANNED])}")
        return value

    @property
    def model_reference(self) -> str | None:
        """The model to start from, whichever field named it."""
        return self.base_model_id or self.source_model_id

    @property
    def predecessor(self) -> str | None:
        """The job whose model this one starts from, as named; None where it starts from one that is there."""
        reference = self.model_reference or ""
        return reference.removeprefix(OUTPUT_OF) if reference.startswith(OUTPUT_OF) else None

    def payload_hash(self) -> str:
        """SHA-256 of the canonical form: equal for equal requests, whatever the order of their fields."""
        left_out = {name for name in _UNHASHED_EMPTY if not getattr(self, name)}
        values = self.model_dump(exclude={"idempotency_key"} | left_out)
        settings = values["hyperparams"]
        for name, default in UNHASHED_DEFAULTS.items():
            if name in settings and settings[name] == default:
                del settings[name]
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


class TrainRequest(JobRequest):
    """A request to grow a model and train what is new."""

    type: Literal["train"]
    hyperparams: TrainHyperparams = Field(default_factory=TrainHyperparams)  # type: ignore[arg-type]


class FinetuneRequest(JobRequest):
    """A request to adapt a model."""

    type: Literal["finetune"]
    hyperparams: FinetuneHyperparams = Field(default_factory=FinetuneHyperparams)  # type: ignore[arg-type]


class ContractRequest(JobRequest):
    """A request to shrink a model."""

    type: Literal["contract"]
    hyperparams: ContractHyperparams = Field(default_factory=ContractHyperparams)  # type: ignore[arg-type]


REQUESTS: dict[str, type[JobRequest]] = {
    "train": TrainRequest,
    "finetune": FinetuneRequest,
    "contract": ContractRequest,
}


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


def _fault(error: Mapping[str, Any], type: str) -> Fault:
    loc = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        owner = HYPERPARAMS[type] if loc[0] == "hyperparams" and len(loc) > 1 else JobRequest
        nearest = _nearest(str(loc[-1]), list(owner.model_fields))
        others = [name for name, kind in HYPERPARAMS.items() if loc[-1] in kind.model_fields]
        if owner is not JobRequest and others:
            message = f"a {type} job has no such setting ({' and '.join(others)} jobs have){nearest}"
        else:
            message = f"unknown field{nearest}"
        return Fault(loc, message, error["type"])
    if "field" in error.get("ctx", {}):
        loc += (error["ctx"]["field"],)  # pydantic lays a rule about several settings to all of them
        return Fault(loc, str(error["msg"]), error["type"])
    message = str(error["msg"]).removeprefix("Value error, ")
    value = error.get("input")
    shown = f" (got {value!r})" if isinstance(value, str | int | float) and error["type"] != "value_error" else ""
    return Fault(loc, message[:1].lower() + message[1:] + shown, error["type"])


def parse(payload: Mapping[str, Any]) -> JobRequest:
    """Validate a request. Raises InvalidRequest with every fault found."""
    values = dict(payload)
    hyperparams = values.get("hyperparams")
    # The dialect allows the source model in either place; here it has one.
    if isinstance(hyperparams, Mapping) and "source_model_id" in hyperparams:
        rest = dict(hyperparams)
        inner = rest.pop("source_model_id")
        if values.get("source_model_id") not in (None, inner):
            raise InvalidRequest(
                [Fault(("hyperparams", "source_model_id"), "differs from the source_model_id above it")]
            )
        values |= {"source_model_id": inner, "hyperparams": rest}
    kind = str(values.get("type"))
    try:
        request = REQUESTS.get(kind, JobRequest).model_validate(values)
    except ValidationError as error:
        faults = [_fault(dict(item), kind) for item in error.errors()]
        if kind not in REQUESTS:
            # What its settings may be, nobody knows.
            faults = [fault for fault in faults if fault.loc[0] != "hyperparams"]
        raise InvalidRequest(faults) from None
    faults = []
    if not (request.model_reference or request.checkpoint_id):
        field = "source_model_id" if request.type == "contract" else "base_model_id"
        faults.append(Fault((field,), "name the model to start from", "missing"))
    if request.type == "contract":
        if request.dataset_id is not None:
            message = "a contract job takes no dataset: the model writes its own text. Leave it out"
            faults.append(Fault(("dataset_id",), f"{message}; to report on one, set hyperparams.eval_dataset_id"))
        if request.more_dataset_ids:
            faults.append(Fault(("more_dataset_ids",), "a contract job takes no dataset. Leave them out"))
    elif not request.dataset_id:
        faults.append(Fault(("dataset_id",), "name the dataset to train on", "missing"))
    if request.base_model_id and request.source_model_id:
        faults.append(Fault(("source_model_id",), "give base_model_id or source_model_id, not both"))
    if request.checkpoint_id and request.model_reference:
        faults.append(Fault(("checkpoint_id",), "give a checkpoint or a model to start from, not both"))
    if faults:
        raise InvalidRequest(faults)
    return request
