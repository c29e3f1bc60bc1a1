"""Settings of each type of job: names, defaults, limits, and what follows from them.

The rule: a setting is a field here, with a description that any face can show, or it does not exist.
Names and defaults are those of the fusion dialect; what that leaves open is this project's choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from engine.paths import NAME_PATTERN

DRAWN_AT_MOST = 500  # rows that a random split holds out: more would cost time and tell nothing more


class Hyperparams(BaseModel):
    """What every type of job has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int = Field(0, ge=0, le=2**32 - 1, description="Of everything that is drawn: rows, split, initial weights.")
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

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole job."""
        raise NotImplementedError


class LoopHyperparams(Hyperparams):
    """Settings of the training loop.

    One optimiser step sees `batch_size * grad_accum` packed sequences of `seq_len` tokens.
    """

    lr: float = Field(2e-4, gt=0, le=1, description="Peak learning rate.")
    seq_len: int = Field(1024, ge=16, le=1_048_576, description="Tokens per packed sequence.")
    batch_size: int = Field(1, ge=1, le=4096, description="Packed sequences per forward pass.")
    grad_accum: int = Field(1, ge=1, le=4096, description="Forward passes per optimiser step.")
    load_in_4bit: bool = Field(False, description="Hold the frozen weights in 4 bits (NF4).")
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="Shape after the warm-up.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps in which lr rises to its peak.")
    warmup_steps: int | None = Field(
        None, ge=0, le=10_000_000, description="Steps in which lr rises to its peak; wins over warmup_ratio."
    )
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
    loss_on: Literal["answers", "last_answer", "all"] = Field(
        "answers", description="Train on answers alone, on the last answer of each row alone, or on every token."
    )
    system_prompt: str | None = Field(
        None, min_length=1, max_length=100_000, description="Put before conversations that have no system message."
    )
    drop_bad_rows: bool = Field(False, description="Leave out rows that cannot be trained on, and count them.")
    val_fraction: float = Field(0.05, gt=0, lt=0.9, description="Share of the rows held out for evaluation.")
    val_split: Literal["random", "last"] = Field(
        "random",
        description=(
            "Which rows are held out: drawn at random from all, 500 at most; or the last of each dataset, all of the "
            "share."
        ),
    )
    eval_steps: int = Field(
        0, ge=0, description="Evaluate every so many steps; 0: ten times a run, 25 steps apart or more."
    )
    early_stopping_patience: int = Field(
        0, ge=0, le=1000, description="Stop after so many evaluations without a better loss; 0: never."
    )
    early_stopping_min_delta: float = Field(1e-4, ge=0, le=10, description="What counts as better, in nats.")
    save_steps: int = Field(100, ge=1, description="Checkpoint every so many steps.")
    torch_compile: bool = Field(False, description="Compile each decoder layer: a minute at the start, then faster.")

    @property
    def frozen_base(self) -> bool:
        """Whether the weights that the job begins with stay as they are."""
        raise NotImplementedError

    @property
    def eval_interval(self) -> int:
        """Steps between two evaluations."""
        return self.eval_steps or max(25, self.total_steps // 10)

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate rises to its peak."""
        return round(self.total_steps * self.warmup_ratio) if self.warmup_steps is None else self.warmup_steps

    def held_out(self, rows: int) -> int:
        """Return how many of `rows` rows, two or more, are held out: at least one, and at most all but one."""
        wanted = max(1, round(rows * self.val_fraction))
        most = DRAWN_AT_MOST if self.val_split == "random" else rows
        return max(min(wanted, most, rows - 1), 0)

    def held_out_of_each(self, sizes: Sequence[int]) -> list[int]:
        """Return how many of the last rows of each dataset are held out: of two rows or more in all, at least one."""
        held = [self.held_out(rows) for rows in sizes]
        if not any(held) and sum(sizes) > 1:
            # Datasets of one row each: the last of them judges.
            held[max(number for number, rows in enumerate(sizes) if rows)] = 1
        return held

    def cycle(self, step: int) -> int:
        """Return the cycle that a step lies in, from 1; 0 for jobs without cycles."""
        return 0

    def ends_cycle(self, step: int) -> bool:
        """Say whether a step is the last of its cycle, which is evaluated and saved."""
        return False


class FinetuneHyperparams(LoopHyperparams):
    """Settings of a `finetune` job."""

    steps: int = Field(2000, ge=1, le=10_000_000, description="Optimiser steps.")
    epochs: float | None = Field(
        None, gt=0, le=10_000, description="Passes over the training rows, in place of steps, which follow from it."
    )
    training_type: Literal["lora", "full"] = Field("lora", description="Train adapters, or every weight.")
    lora_rank: int = Field(32, ge=1, le=1024, description="Rank of the adapters.")
    lora_alpha: float = Field(32.0, gt=0, le=4096, description="Adapters are scaled by alpha / rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before each adapter.")

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> FinetuneHyperparams:
        if self.epochs is not None and "steps" in self.model_fields_set:
            message = "steps follow from epochs: give one of them, not both"
            raise PydanticCustomError("excludes", message, {"field": "epochs"})
        return self

    @model_serializer(mode="wrap")
    def _what_follows_is_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.epochs is not None:
            values.pop("steps", None)
        return values

    @model_validator(mode="after")
    def _four_bits_are_frozen(self) -> FinetuneHyperparams:
        if self.load_in_4bit and self.training_type == "full":
            raise ValueError("weights in 4 bits cannot learn: use training_type lora, or load_in_4bit false")
        return self

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole job; with epochs only once `over` has worked them out."""
        return self.steps

    def steps_over(self, sequences: int) -> int:
        """Return the optimiser steps of a job that trains on so many sequences."""
        if self.epochs is None:
            return self.steps
        # Rounded first, for 1.1 times 30 is a little more than 33.
        return max(math.ceil(round(self.epochs * sequences / (self.batch_size * self.grad_accum), 6)), 1)

    def over(self, sequences: int) -> FinetuneHyperparams:
        """Return the settings with their number of steps over so many training sequences."""
        return self.model_copy(update={"steps": self.steps_over(sequences)})

    @property
    def frozen_base(self) -> bool:
        """Whether adapters learn and nothing else."""
        return self.training_type == "lora"


class TrainHyperparams(LoopHyperparams):
    """Settings of a `train` job: the model is grown, then what is new is trained, turns × cycles × steps_per_cycle."""

    turns: int = Field(1, ge=1, le=1000, description="Complete passes over the cycles; each goes on from the last.")
    cycles: int = Field(6, ge=1, le=10_000, description="Cycles of a turn; each ends with evaluation and checkpoint.")
    steps_per_cycle: int = Field(1000, ge=1, le=1_000_000, description="Optimiser steps of a cycle.")
    lr: float = Field(1e-4, gt=0, le=1, description="Peak learning rate.")
    seq_len: int = Field(256, ge=16, le=1_048_576, description="Tokens per packed sequence.")
    growth_ratio: float = Field(
        0.5, gt=0, le=4, description="New parameters for each old one; left out, what fits what is free, at most 0.5."
    )
    growth_shape: Literal["depth", "width", "auto"] = Field(
        "auto", description="New layers, wider MLPs, or a layer for every four and the rest as width."
    )
    train_scope: Literal["new", "all"] = Field("new", description="Train the new weights, or the old ones too.")
    retain_weight: float = Field(
        0.1, ge=0, le=100, description="Weight of staying close to the original on its own text; 0: off."
    )
    compare_ungrown: bool = Field(False, description="Also train the ungrown model on the same tokens, and report it.")

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_frozen_is_kept(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("train_scope") == "all":
            return {"retain_weight": 0.0, **values}
        return values

    @model_validator(mode="after")
    def _scope_fits(self) -> TrainHyperparams:
        if self.train_scope == "all" and self.load_in_4bit:
            raise ValueError("weights in 4 bits cannot learn: use train_scope new, or load_in_4bit false")
        if self.train_scope == "all" and self.retain_weight:
            raise ValueError("retain_weight needs the original weights unchanged: use train_scope new, or set it to 0")
        return self

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole job."""
        return self.turns * self.cycles * self.steps_per_cycle

    @property
    def frozen_base(self) -> bool:
        """Whether the new weights learn and nothing else."""
        return self.train_scope == "new"

    @property
    def eval_interval(self) -> int:
        """Steps between two evaluations."""
        return self.eval_steps or self.steps_per_cycle

    def cycle(self, step: int) -> int:
        """Return the cycle that a step lies in, from 1, over all turns."""
        return (step - 1) // self.steps_per_cycle + 1

    def ends_cycle(self, step: int) -> bool:
        """Say whether a step is the last of its cycle."""
        return step % self.steps_per_cycle == 0


class ContractHyperparams(Hyperparams):
    """Settings of a `contract` job: neurons or layers go, on text that the model writes itself."""

    contraction_ratio: float = Field(0.5, gt=0, lt=1, description="Share of each processed layer's neurons that goes.")
    num_layers_to_contract: int = Field(8, ge=1, le=10_000, description="Layers to process, up to all.")
    layout: Literal["uniform", "targeted", "depth"] = Field(
        "uniform",
        description="The same number of neurons from every layer; from the least needed layers alone; or whole layers.",
    )
    calibration_sequences: int = Field(128, ge=8, le=8192, description="Sequences that the model writes of itself.")
    seq_len: int = Field(256, ge=32, le=8192, description="Tokens of such a sequence.")
    heal_steps: int = Field(0, ge=0, le=1_000_000, description="Steps of healing towards the original; 0: none.")
    lr: float = Field(3e-4, gt=0, le=1, description="Peak learning rate of the healing.")
    batch_size: int = Field(4, ge=1, le=4096, description="Sequences per step of the healing.")
    save_steps: int = Field(50, ge=1, description="Checkpoint every so many steps of the healing.")
    eval_dataset_id: str | None = Field(
        None, min_length=1, max_length=200, description="Dataset on which the perplexities are also reported."
    )

    @property
    def total_steps(self) -> int:
        """Optimiser steps: those of the healing."""
        return self.heal_steps

    @property
    def healing(self) -> FinetuneHyperparams:
        """The loop's settings for the healing: adapters on every layer, merged in the end."""
        kept = {"lr", "seq_len", "batch_size", "save_steps", "seed", "deterministic"}
        changed = {"steps": max(self.heal_steps, 1), "loss_on": "all"}
        return FinetuneHyperparams.model_validate(self.model_dump(include=kept) | changed)


# Settings that requests of earlier versions had not: left at their defaults they are no part of what is hashed, so that
# an idempotency key of then still means the same job.
UNHASHED_DEFAULTS: dict[str, Any] = {"epochs": None, "warmup_steps": None, "system_prompt": None, "val_split": "random"}

HYPERPARAMS: dict[str, type[Hyperparams]] = {
    "train": TrainHyperparams,
    "finetune": FinetuneHyperparams,
    "contract": ContractHyperparams,
}
