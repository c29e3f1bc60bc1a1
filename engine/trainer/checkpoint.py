"""Checkpoints: staged, sealed with a manifest, published by rename; loaded only after every hash held.

The rule: a directory named step-N is complete. What is found damaged is renamed, so that it is never taken again.
Nothing is pickled: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engine import atomic, manifest, pins, resources
from engine.manifest import Damaged
from engine.trainer import device as devices
from engine.trainer import optimizer as optimizers
from engine.trainer.guard import Guard
from engine.trainer.ladder import Rung
from engine.trainer.optimizer import trained_parameters

STATE = "state.json"
STAGE = ".stage-"
QUARANTINE = ".damaged"
KEPT_AT_LEAST = 2  # a damaged newest one must leave another


@dataclass
class LoopState:
    """Where training stands; with weights, optimiser and random states, all that resuming needs.

    `step` optimiser steps are done, `skipped` of them without an update; `tokens` without padding; `seconds` on the
    device over all attempts; `rung` is where on the ladder down from an out-of-memory the run stands; `lr_scale`
    multiplies the learning rate; `best_loss` is the lowest evaluation loss at a checkpoint so far, that of `best_step`;
    `stale` counts the evaluations since the lowest loss of all, `lowest`; `owed`: the evaluation of `step` was left,
    for the run was asked to stop, and comes before the next step.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    rung: Rung = field(default_factory=lambda: Rung(0, "none"))
    lr_scale: float = 1.0
    loss_scale: float = 1.0
    guard: Guard = field(default_factory=Guard)
    baseline_loss: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    lowest: float | None = None
    stale: int = 0
    owed: bool = False
    curve: list[tuple[int, float]] = field(default_factory=list)
    samples: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> LoopState:
        """Read what `save` wrote. Raises OSError, ValueError."""
        fields = json.loads(path.read_text())
        # What a checkpoint of an earlier version does not have, begins anew.
        for name, kind in (("rung", Rung), ("guard", Guard)):
            if name in fields:
                fields[name] = kind(**fields[name])
        fields["curve"] = [(step, loss) for step, loss in fields.get("curve", [])]
        return cls(**fields)


def save(
    root: Path, state: LoopState, facts: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Path:
    """Publish a checkpoint of `state.step` below `root` and return its directory. Raises NoSpace, DiskFailed."""
    with atomic.telling(f"saving the checkpoint of step {state.step}", root):
        # Only in a folder that is there: where the attempt's own was removed, nobody waits for its work.
        atomic.make_folder(root)
        final = root / f"step-{state.step:08d}"
        if final.exists():
            return final
        parts = {
            "weights": {name: value.detach().cpu().contiguous() for name, value in trained_parameters(model).items()},
            "optimizer": optimizers.state_tensors(model, optimizer),
            "random": devices.rng_state(next(model.parameters()).device),
        }
        size = sum(tensor.numel() * tensor.element_size() for part in parts.values() for tensor in part.values())
        resources.need_space(root, size, f"the checkpoint of step {state.step}")
        staged = root / f"{STAGE}{state.step:08d}"
        atomic.discard(staged)
        try:
            atomic.step(staged.mkdir, mode=0o700)
            for name, tensors in parts.items():
                atomic.step(save_file, tensors, staged / f"{name}.safetensors")
            atomic.write_json(staged / STATE, asdict(state))
            manifest.seal(staged, facts)
            atomic.publish(staged, final)
        except BaseException:
            # On a full disk a stage left behind would keep it full.
            atomic.discard(staged)
            raise
    return final


def clear(roots: Sequence[Path]) -> None:
    """Remove what attempts that died left half done: stages of no use to anyone, removals cut short.

    What turns out to be pinned is put back.
    """
    for root in roots:
        for stage in root.glob(f"{STAGE}*"):
            atomic.discard(stage)
        atomic.sweep(root, unless=pins.is_pinned)


def size_of(directory: Path) -> int:
    """Return the bytes of a published checkpoint."""
    return sum(entry["size"] for entry in manifest.load(directory).files.values())


def step_of(directory: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(directory.name.removeprefix("step-"))


def published(roots: Sequence[Path]) -> list[Path]:
    """Return the published checkpoints below `roots`, newest step first; at one step, in the order of the roots."""
    found = [path for root in roots for path in sorted(root.glob("step-*")) if path.name[5:].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def newest_good(
    roots: Sequence[Path], on_damage: Callable[[Path, Damaged], None], *, step: int | None = None
) -> Path | None:
    """Return the newest checkpoint (of one step) whose every file is as published; set aside the damaged ones.

    `on_damage` hears of each, with the name it gets, before it is set aside: after a crash between the two it is told
    again, and never not at all. Raises DiskFailed.
    """
    for directory in published(roots):
        if step is not None and step_of(directory) != step:
            continue
        try:
            _verify(directory)
            return directory
        except Damaged as damage:
            on_damage(directory.with_name(directory.name + QUARANTINE), damage)
        with atomic.telling("setting a damaged checkpoint aside", directory):
            atomic.set_aside(directory, QUARANTINE)
        _thin_quarantine(roots)
    return None


def _verify(directory: Path) -> None:
    """Raise Damaged unless every file is as published, and published for this step."""
    step = manifest.verify(directory).facts.get("step", step_of(directory))
    if step != step_of(directory):
        raise Damaged(directory, manifest.MANIFEST, f"is that of step {step}")


def _thin_quarantine(roots: Sequence[Path]) -> None:
    """Of the damaged checkpoints keep that of the highest step, in which most work lies; and those that their user
    pinned. Nobody starts from a damaged one."""
    found = [path for root in roots for path in sorted(root.glob(f"step-*{QUARANTINE}"))]
    for path in sorted(found, key=lambda path: path.name, reverse=True)[1:]:
        if not pins.is_pinned_by_user(path):
            atomic.remove_tree(path)


def restore(directory: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> LoopState:
    """Load a verified checkpoint into model, optimiser and random generators."""
    restore_weights(directory, model)
    optimizers.restore(model, optimizer, load_file(directory / "optimizer.safetensors"))
    devices.set_rng_state(next(model.parameters()).device, load_file(directory / "random.safetensors"))
    return LoopState.read(directory / STATE)


def restore_weights(directory: Path, model: torch.nn.Module) -> None:
    """Load what was learned by a verified checkpoint into a model of which the same parameters learn."""
    parameters = trained_parameters(model)
    weights = load_file(directory / "weights.safetensors")
    if weights.keys() != parameters.keys():
        raise ValueError(f"{directory} holds other weights than this job trains")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def prune(
    roots: Sequence[Path],
    *,
    keep: int,
    best_step: int,
    on_gone: Callable[[int], None] = lambda step: None,
    on_spared: Callable[[Path], None] = lambda directory: None,
) -> list[int]:
    """Remove all but the `keep` newest checkpoints, the best and those pinned; return the steps of which none is left.

    `on_gone` hears of a step before it goes: after a crash between the two a checkpoint too many lies on the disk,
    and none is missing that was not told of. `on_spared` hears of one that was pinned in that very moment.
    """
    found = published(roots)
    surplus = found[max(keep, KEPT_AT_LEAST) :]
    doomed = [path for path in surplus if step_of(path) != best_step and not pins.is_pinned(path)]
    # Two attempts may each have saved the same step.
    left = {step_of(path) for path in found if path not in doomed}
    gone = [step for step in dict.fromkeys(map(step_of, doomed)) if step not in left]
    for step in gone:
        on_gone(step)
    for path in doomed:
        if not atomic.remove_tree(path, unless=pins.is_pinned):
            on_spared(path)
    return gone
