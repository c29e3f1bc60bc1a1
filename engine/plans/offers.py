"""What would make a run fit: settings that save memory, the least harmful first.

The rule: what is offered is a legal request whose plan was made and fits; harm grows from time (smaller passes,
recomputing) over precision to what comes out of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from engine.plans.plan import Plan

if TYPE_CHECKING:
    from engine.jobs.hyperparams import ContractHyperparams, Hyperparams

Settings = TypeVar("Settings", bound="Hyperparams")

# Of what is offered.
SEQ_LEN_AT_LEAST = 256
SEQUENCES_AT_LEAST = 32
SMALLER_RATIOS = (1.0, 0.5, 0.25, 0.1, 0.05)


@dataclass(frozen=True)
class Alternative:
    """Settings that would make a run fit, and what it would then need."""

    changes: dict[str, Any]
    needed: int

    def __str__(self) -> str:
        return ", ".join(f"{key}={str(value).lower()}" for key, value in self.changes.items())


def alternatives(
    settings: Settings, limit: int, planned: Callable[[Settings], Plan], *, quantises: bool
) -> list[Alternative]:
    """Return the changes with which a run needs no more than `limit` bytes, the least harmful first.

    A change that does not do alone is offered with the fewest of those before it. `quantises`: the device can hold 4
    and 8 bits.
    """

    def cost(changes: list[dict[str, Any]]) -> int:
        return planned(settings.model_copy(update=_merged(changes))).needed

    found: list[Alternative] = []
    rungs = _rungs(settings, quantises=quantises)
    for place, rung in enumerate(rungs):
        changes = [rung]
        if cost(changes) > limit:
            changes = rungs[: place + 1]
            if found or cost(changes) > limit:
                continue
            for other in rungs[place - 1 :: -1] if place else []:
                fewer = [change for change in changes if change is not other]
                changes = fewer if cost(fewer) <= limit else changes
        if not any(alternative.changes.keys() == rung.keys() for alternative in found):
            found.append(Alternative(_merged(changes), cost(changes)))
    return found


def _merged(changes: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for change in changes for key, value in change.items()}


def _rungs(settings: Hyperparams, *, quantises: bool) -> list[dict[str, Any]]:
    """Return single changes that save memory, the least harmful first."""
    from engine.jobs.hyperparams import ContractHyperparams, LoopHyperparams, TrainHyperparams

    if isinstance(settings, ContractHyperparams):
        return _contracting(settings)
    assert isinstance(settings, LoopHyperparams)
    rungs: list[dict[str, Any]] = []
    if settings.batch_size > 1:
        # The same sequences make up a step, so the losses stay.
        rungs.append({"batch_size": 1, "grad_accum": settings.grad_accum * settings.batch_size})
    levels = ("none", "selective", "full")
    for level in levels[levels.index(settings.gradient_checkpointing) + 1 :]:
        rungs.append({"gradient_checkpointing": level})
    if quantises and settings.optimizer == "adamw":
        rungs.append({"optimizer": "adamw_8bit"})
    if quantises and settings.frozen_base and not settings.load_in_4bit:
        rungs.append({"load_in_4bit": True})
    rungs += [{"seq_len": length} for length in _halves(settings.seq_len, SEQ_LEN_AT_LEAST)]
    if isinstance(settings, TrainHyperparams):
        rungs += [{"growth_ratio": ratio} for ratio in SMALLER_RATIOS if ratio < settings.growth_ratio]
    if not settings.frozen_base:
        frozen = {"train_scope": "new"} if isinstance(settings, TrainHyperparams) else {"training_type": "lora"}
        rungs.append(frozen)
        rungs += [{**frozen, "load_in_4bit": True}] if quantises else []
    return rungs


def _contracting(settings: ContractHyperparams) -> list[dict[str, Any]]:
    """The same for a contract job: less at once, less text, no healing."""
    rungs: list[dict[str, Any]] = []
    if settings.heal_steps and settings.batch_size > 1:
        rungs.append({"batch_size": 1})
    rungs += [{"calibration_sequences": count} for count in _halves(settings.calibration_sequences, SEQUENCES_AT_LEAST)]
    rungs += [{"seq_len": length} for length in _halves(settings.seq_len, SEQ_LEN_AT_LEAST // 2)]
    if settings.heal_steps:
        rungs.append({"heal_steps": 0})
    return rungs


def _halves(value: int, least: int) -> list[int]:
    """Return half of a value, half of that and so on, down to `least`."""
    found = []
    while (value := value // 2) >= least:
        found.append(value)
    return found
