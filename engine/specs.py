"""Job types: what a request may say, its defaults, and its canonical form.

The rule: a job is described by a validated `JobRequest` or not at all; every face submits through it.
Field names and defaults are those of the fusion dialect; what that leaves open is this project's choice.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from engine.errors import Fault, InvalidRequest
from engine.paths import NAME_PATTERN


class FinetuneHyperparams(BaseModel):
    """Settings of a `finetune` job.

    One optimiser step sees `batch_size * grad_accum` packed sequences of `seq_len` tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(2000, ge=1, le=10_000_000, description="Optimiser steps.")
    lr: float = Field(2e-4, gt=0, le=1, description="Peak learning rate.")
    seq_len: int = Field(1024, ge=16, le=1_048_576, description="Tokens per packed sequence.")
    batch_size: int = Field(1, ge=1, le=4096, description="Packed sequences per forward pass.")
    grad_accum: int = Field(1, ge=1, le=4096, description="Forward passes per optimiser step.")
    training_type: Literal["lora", "full"] = Field("lora", description="Train adapters, or every weight.")
    load_in_4bit: bool = Field(False, description="QLoRA: hold the frozen weights in 4 bits (NF4).")
    lora_rank: int = Field(32, ge=1, le=1024, description="Rank of the adapters.")
    lora_alpha: float = Field(32.0, gt=0, le=4096, description="Adapters are scaled by alpha / rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before each adapter.")
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="Shape after the warm-up.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps in which lr rises to its peak.")
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="AdamW with state in 32 or 8 bits; paged: the state moves to main memory under pressure."
    )
    gradient_checkpointing: Literal["none", "selective", "full"] = Field(
        "none", description="Recompute activations in the backward pass: less memory, more time."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, le=1000, description="Gradients are clipped to this norm.")
    neftune_alpha: float = Field(0.0, ge=0, le=1000, description="Noise on the embeddings in training; 0: off.")
    packing: bool = Field(True, description="Several rows in one sequence; attention never crosses rows.")
    loss_on: Literal["answers", "all"] = Field("answers", description="Train on answers alone, or on every token.")
    drop_bad_rows: bool = Field(False, description="Leave out rows that cannot be trained on, and count them.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Order of rows, split, initial adapters.")
    val_fraction: float = Field(0.05, gt=0, lt=0.9, description="Share of the rows held out for evaluation.")
    eval_steps: int = Field(
        0, ge=0, description="Evaluate every so many steps; 0: ten times a run, 25 steps apart or more."
    )
    early_stopping_patience: int = Field(
        0, ge=0, le=1000, description="Stop after so many evaluations without a better loss; 0: never."
    )
    early_stopping_min_delta: float = Field(1e-4, ge=0, le=10, description="What counts as better, in nats.")
    save_steps: int = Field(100, ge=1, description="Checkpoint every so many steps.")
    torch_compile: bool = Field(False, description="Compile each decoder layer: a minute at the start, then faster.")
    deterministic: bool = Field(False, description="Bitwise repeatable on a card too, at some cost in speed.")
    output_name: str | None = Field(None, pattern=NAME_PATTERN, description="Name of the new model.")

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        wants_bool = cls.model_fields[info.field_name or ""].annotation is bool
        if isinstance(value, bool) and not wants_bool:
            raise ValueError("true and false are no numbers")
        if isinstance(value, int) and not isinstance(value, bool) and wants_bool:
            raise ValueError("must be true or false")
        return value

    @model_validator(mode="after")
    def _four_bits_are_frozen(self) -> FinetuneHyperparams:
        if self.load_in_4bit and self.training_type == "full":
            raise ValueError("weights in 4 bits cannot learn: use training_type lora, or load_in_4bit false")
        return self

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole job."""
        return self.steps

    @property
    def eval_interval(self) -> int:
        """Steps between two evaluations."""
        return self.eval_steps or max(25, self.steps // 10)


# What a type of job needs: its settings. The types that api.md names but no verb carries out yet are listed too,
# so that the answer to them is true.
HYPERPARAMS: dict[str, type[FinetuneHyperparams]] = {"finetune": FinetuneHyperparams}
PLANNED = ("train", "contract", "align")


class JobRequest(BaseModel):
    """A request for a job, as every face submits it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = Field(description="finetune")
    idempotency_key: str = Field(min_length=1, max_length=200)
    base_model_id: str | None = Field(None, min_length=1, max_length=200, description="Model to start from.")
    source_model_id: str | None = Field(None, min_length=1, max_length=200, description="One of your own models.")
    dataset_id: str | None = Field(None, min_length=1, max_length=200)
    hyperparams: FinetuneHyperparams = Field(default_factory=FinetuneHyperparams)  # type: ignore[arg-type]
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

    def payload_hash(self) -> str:
        """SHA-256 of the canonical form: equal for equal requests, whatever the order of their fields."""
        canonical = json.dumps(self.model_dump(exclude={"idempotency_key"}), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


def _fault(error: Mapping[str, Any]) -> Fault:
    loc = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        owner = FinetuneHyperparams if loc[0] == "hyperparams" and len(loc) > 1 else JobRequest
        return Fault(loc, f"unknown field{_nearest(str(loc[-1]), list(owner.model_fields))}", error["type"])
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
    try:
        request = JobRequest.model_validate(values)
    except ValidationError as error:
        raise InvalidRequest([_fault(dict(item)) for item in error.errors()]) from None
    faults = []
    if not request.model_reference:
        faults.append(Fault(("base_model_id",), "name the model to start from", "missing"))
    if not request.dataset_id:
        faults.append(Fault(("dataset_id",), "name the dataset to train on", "missing"))
    if request.base_model_id and request.source_model_id:
        faults.append(Fault(("source_model_id",), "give base_model_id or source_model_id, not both"))
    if faults:
        raise InvalidRequest(faults)
    return request
