"""What dialect B takes: the body of `POST /felix/training-jobs`, and what its fields rule out together.

The rule: names, defaults and limits are the dialect's own; what a number may be where the dialect is silent is what
the setting of the engine behind it may be.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from engine.errors import Fault, InvalidRequest
from engine.jobs import features

DATASETS_AT_MOST = 32
# A name of the catalogue, a name of the hub (owner/name), or an id.
REFERENCE = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth)]
Number = Annotated[float, BeforeValidator(_no_truth)]

RewardType = Literal[
    "exact_match",
    "contains_substring",
    "numeric_match",
    "choice_match",
    "regex_match",
    "json_match",
    "json_loose_match",
    "rougeL_match",
    "llm_as_judge",
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class NamedDataset(_Body):
    """A dataset by its name; the newest version that is ready where none is given."""

    name: str = Field(min_length=1, max_length=100)
    version: Whole | None = Field(None, ge=1, le=2**31)


class RlConfig(_Body):
    """How to train on rewards or preferences. Where a value is absent, the training library's own default holds."""

    reward_type: RewardType | None = Field(None, description="Required for grpo.")
    max_steps: Whole | None = Field(None, ge=1)
    group_size: Whole | None = Field(None, ge=2)
    kl_beta: Number | None = Field(None, ge=0)
    sampling_temperature: Number | None = Field(None, gt=0)
    max_completion_length: Whole | None = Field(None, ge=1)
    dpo_beta: Number | None = Field(None, gt=0)
    loss_type: str | None = Field(None, min_length=1, max_length=100)
    logging_steps: Whole = Field(25, ge=1)
    llm_judge_model: str | None = Field(None, min_length=1, max_length=200)
    llm_judge_rubric: str | None = Field(None, min_length=1, max_length=100_000)
    llm_judge_score_scale: Number | None = Field(None, gt=0)
    llm_judge_timeout_s: Number | None = Field(None, gt=0)
    llm_judge_max_concurrent: Whole | None = Field(None, ge=1)
    llm_judge_max_retries: Whole | None = Field(None, ge=0)
    llm_judge_retry_backoff_s: Number | None = Field(None, ge=0)


class TrainingJobRequest(_Body):
    """A training job of dialect B."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model_name": "support-bot", "base_model": "starter", "datasets": [{"name": "starter"}]},
                {
                    "model_name": "support-bot",
                    "base_model": "starter",
                    "datasets": [{"name": "starter", "version": 1}],
                    "nr_epochs": 3,
                    "learning_rate": 0.0002,
                    "lora_r": 32,
                    "mask_history": True,
                },
            ]
        }
    )

    model_name: str | None = Field(None, min_length=1, max_length=100, description="Generated where it is left out.")
    base_model: str = Field(
        min_length=1,
        max_length=200,
        pattern=REFERENCE,
        description="Id or name from GET /felix/base-models, or the id of a checkpoint of an earlier job.",
    )
    datasets: list[NamedDataset] = Field(
        min_length=1, max_length=DATASETS_AT_MOST, description="Ready ones; several are read one after the other."
    )
    training_type: Literal["lora", "full"] = Field(
        "lora", description="For decoders only lora, unless the setting allow_full_decoder is on."
    )
    training_algorithm: Literal["sft", "grpo", "dpo"] = "sft"
    rl_config: RlConfig | None = Field(None, description="Required for grpo and dpo, refused for sft.")
    nr_epochs: Whole | None = Field(None, ge=1, le=10_000, description="10 for decoders where it is left out.")
    learning_rate: Number | None = Field(
        None, gt=0, le=1, description="Peak. Left out, what POST /training/recommend says for so many rows a step."
    )
    batch_size: Whole = Field(4, ge=1, le=4096, description="Rows of a forward pass; packed sequences with packing.")
    lora_r: Whole = Field(16, ge=1, le=1024)
    lora_alpha: Number = Field(32, gt=0, le=4096)
    lora_dropout: Number = Field(0.1, ge=0, lt=1)
    validation_data_percentage: Number = Field(
        0.2, gt=0, lt=0.9, description="Share of each dataset's rows that is held out: its last ones, unshuffled."
    )
    save_steps: Whole = Field(100, ge=1)
    seed: Whole = Field(0, ge=0, le=2**32 - 1)
    packing: bool = Field(False, description="Several rows in one sequence, of which attention crosses none.")
    mask_history: bool = Field(False, description="Train on the last answer of a conversation alone.")
    system_prompt: str | None = Field(None, min_length=1, max_length=100_000)
    warmup_ratio: Number = Field(0.03, ge=0, lt=1)
    warmup_steps: Whole | None = Field(None, ge=0, le=10_000_000, description="Wins over warmup_ratio.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    weight_decay: Number = Field(0.01, ge=0, le=1)
    early_stopping_patience: Whole = Field(
        3, ge=0, le=1000, description="Evaluations without a better held-out loss, of which a run has ten; 0: off."
    )
    early_stopping_min_delta: Number = Field(0.0001, ge=0, le=10)
    gradient_accumulation_steps: Whole = Field(1, ge=1, le=4096)
    encoder_learning_rate: Number | None = Field(None, gt=0, le=1, description="Of encoders alone.")
    task_learning_rate: Number | None = Field(None, gt=0, le=1, description="Of encoders alone.")
    project_id: str | None = Field(None, min_length=1, max_length=200)

    def digest(self) -> str:
        """Return the SHA-256 of what is asked for: equal for equal requests, defaults spelled out or not."""
        values = json.dumps({"felix": self.model_dump()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(values.encode()).hexdigest()


class BaseModelQuery(BaseModel):
    """What the models of a list are to be and to support; nothing said, all of them."""

    task_type: Literal["encoder", "decoder"] | None = Field(None, description="All are decoders in this version.")
    supports_inference: bool | None = None
    supports_training: bool | None = None

    @property
    def asks(self) -> bool:
        """Whether anything is said."""
        return bool(self.model_dump(exclude_none=True))


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def _fault(error: Mapping[str, Any]) -> Fault:
    """Return a fault that pydantic found, in our words where it knows no remedy."""
    loc, message = tuple(error["loc"]), str(error["msg"])
    if error["type"] == "extra_forbidden":
        owners: dict[Any, type[BaseModel]] = {"rl_config": RlConfig, "datasets": NamedDataset}
        owner = owners.get(loc[0], TrainingJobRequest) if len(loc) > 1 else TrainingJobRequest
        message = f"unknown field{_nearest(str(loc[-1]), list(owner.model_fields))}"
    return Fault(loc, message.removeprefix("Value error, "), error["type"])


def _ruled_out(asked: TrainingJobRequest) -> Iterator[Fault]:
    """Yield what is wrong with fields that do not go together, and what this version does not do."""
    algorithm = asked.training_algorithm
    if algorithm == "sft" and asked.rl_config is not None:
        yield Fault(("rl_config",), "is for grpo and dpo; leave it out for sft")
    if algorithm != "sft" and asked.rl_config is None:
        yield Fault(("rl_config",), f"is required for {algorithm}", "missing")
    if algorithm == "grpo" and asked.rl_config is not None and asked.rl_config.reward_type is None:
        yield Fault(("rl_config", "reward_type"), "is required for grpo", "missing")
    if absent := features.absence(algorithm, ("training_algorithm",)):
        yield absent
    for name in ("encoder_learning_rate", "task_learning_rate"):
        if getattr(asked, name) is not None:
            yield Fault((name,), "is for encoders; a decoder takes learning_rate")


def read(payload: Mapping[str, Any]) -> TrainingJobRequest:
    """Validate a body. Raises InvalidRequest with every fault found."""
    try:
        asked = TrainingJobRequest.model_validate(payload)
    except ValidationError as error:
        raise InvalidRequest([_fault(dict(fault)) for fault in error.errors()]) from None
    if faults := list(_ruled_out(asked)):
        raise InvalidRequest(faults)
    return asked
