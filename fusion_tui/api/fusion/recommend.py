"""`POST /training/recommend`: its request, its answer, its route.

The rule: field names are dialect A's own; `type`, `training_type`, `batch_size`, the settings of a finetune and
`memory` are this project's additions.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, field_validator

from engine.plans.advice import Advice
from engine.plans.planning import MemoryReport
from engine.plans.recommend import DISCLAIMER, TRAIN
from fusion_tui.api import body, errors
from fusion_tui.api.access import READ, Engine
from fusion_tui.api.answer import Answer

router = APIRouter(prefix="/training", tags=["training"])


class RecommendRequest(BaseModel):
    """A model (or its size) and a dataset (or its size). Plain numbers win over what the entries tell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model_id: str | None = Field(None, min_length=1, max_length=200)
    source_model_id: str | None = Field(None, min_length=1, max_length=200, description="One of your own models.")
    dataset_id: str | None = Field(None, min_length=1, max_length=200)
    params: int | None = Field(None, ge=1, le=10**13, description="Parameters of a model that is not here.")
    dataset_tokens: int | None = Field(None, ge=1, le=10**15)
    dataset_bytes: int | None = Field(None, ge=1, le=10**15)
    type: Literal["train", "finetune"] = Field("train", description="The type of job to recommend for.")
    training_type: Literal["lora", "full"] = "lora"

    @field_validator("params", "dataset_tokens", "dataset_bytes", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("true and false are no numbers")
        return value


class TrainSettings(Answer):
    """Where to start a train job; the last four only where memory needs them."""

    turns: int
    lr: float
    cycles: int
    steps_per_cycle: int
    seq_len: int
    batch_size: int
    grad_accum: int
    growth_ratio: float | None = None
    load_in_4bit: bool | None = None
    gradient_checkpointing: str | None = None
    optimizer: str | None = None


class FinetuneSettings(Answer):
    """Where to start a finetune job."""

    steps: int
    lr: float
    seq_len: int
    batch_size: int
    grad_accum: int
    lora_rank: int | None = None
    lora_alpha: float | None = None
    training_type: str
    load_in_4bit: bool | None = None
    gradient_checkpointing: str | None = None
    optimizer: str | None = None


class Window(Answer):
    """The range in which a value may move."""

    min: float | int
    max: float | int


class Memory(Answer):
    """What a job with these settings takes on the device that it would run on, in GB of 10^9 bytes."""

    needed_gb: float
    free_gb: float
    fits: bool
    plan: dict[str, Any]

    @classmethod
    def of(cls, report: MemoryReport) -> Memory:
        """Translate the engine's report."""
        needed, free = (round(bytes_ / 1e9, 2) for bytes_ in (report.needed, report.free))
        return cls(needed_gb=needed, free_gb=free, fits=report.fits, plan=report.document())


class Recommended(Answer):
    """Settings to start from. `memory` is null where no plan can be made."""

    type: str
    model_params: int
    dataset_tokens_est: int
    recommended: TrainSettings | FinetuneSettings
    windows: dict[str, Window]
    notes: list[str]
    disclaimer: str
    memory: Memory | None

    @classmethod
    def of(cls, advice: Advice) -> Recommended:
        """Translate the engine's advice."""
        made = advice.made
        settings = TrainSettings if made.type == TRAIN else FinetuneSettings
        return cls(
            type=made.type,
            model_params=made.model.params,
            dataset_tokens_est=made.data.tokens,
            recommended=settings.model_validate(made.hyperparams),
            windows={
                name: Window(min=one.low, max=one.high)
                for name, one in made.values.items()
                if one.low is not None and one.high is not None
            },
            notes=list(made.notes),
            disclaimer=DISCLAIMER,
            memory=Memory.of(advice.memory) if advice.memory else None,
        )


@router.post(
    "/recommend",
    dependencies=READ,
    response_model_exclude_unset=True,
    responses=errors.documented(400, 401, 403, 408, 413, 415, 421, 422, 503),
    openapi_extra=body.documented(RecommendRequest),
)
def recommend(service: Engine, payload: body.JsonObject) -> Recommended:
    """Say where to start for a model and a dataset, with windows, reasons and the memory that it takes."""
    asked = body.validated(RecommendRequest, payload).model_dump()
    base, source, dataset = (asked.pop(name) for name in ("base_model_id", "source_model_id", "dataset_id"))
    return Recommended.of(service.recommend(model=base or source, dataset=dataset, **asked))
