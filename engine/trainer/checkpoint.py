"""Checkpoints: staged, sealed with a manifest, published by rename; loaded only after every hash held.

The rule: a directory named step-N is complete. What is found damaged is renamed, so that it is never taken again.
Nothing is pickled: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine import atomic, manifest, resources
from engine.errors import NoSpace
from engine.manifest import Damaged
from engine.trainer import device as devices
from engine.trainer import optimizer as optimizers
from engine.trainer.guard import Guard
from engine.trainer.ladder import Rung
from engine.trainer.optimizer import trained_parameters

STATE = "state.json"


@dataclass
class LoopState:
    """Where training stands; with weights, optimiser and random states, all that resuming needs.

    `step` optimiser steps are done, `skipped` of them without an update; `tokens` without padding; `seconds` on the
    device over all attempts; `rung` is where on the ladder down from an out-of-memory the run stands; `lr_scale`
    multiplies the learning rate; `best_loss` is the lowest evaluation loss at a checkpoint so far, that of `best_step`;
    `stale` counts the evaluations since the lowest loss of all, `lowest`.
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


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file. Raises NoSpace where the disk filled up since it was looked at."""
    try:
        atomic.step(save_file, tensors, path)
    except SafetensorError as error:
        # The library tells of the system's errors in words alone.
        if f"os error {errno.ENOSPC}" in str(error):
            raise NoSpace(f"The disk is full: {path.name} could not be written below {path.parent.parent}.") from None
        raise


def save(
    root: Path, state: LoopState, facts: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Path:
    """Publish a checkpoint of `state.step` below `root` and return its directory. Raises NoSpace, OSError."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = root / f"step-{state.step:08d}"
    if final.exists():
        return final
    weights = {name: value.detach().cpu().contiguous() for name, value in trained_parameters(model).items()}
    moments = optimizers.state_tensors(model, optimizer)
    random_states = devices.rng_state(next(model.parameters()).device)
    size = sum(tensor.numel() * tensor.element_size() for tensor in [*weights.values(), *moments.values()])
    resources.need_space(root, size, f"the checkpoint of step {state.step}")
    staged = root / f".stage-{state.step:08d}"
    shutil.rmtree(staged, ignore_errors=True)
    atomic.step(staged.mkdir, mode=0o700)
    try:
        _save(weights, staged / "weights.safetensors")
        _save(moments, staged / "optimizer.safetensors")
        _save(random_states, staged / "random.safetensors")
        atomic.write_json(staged / STATE, asdict(state))
        manifest.seal(staged, facts)
        atomic.publish(staged, final)
    except BaseException:
        # On a full disk a stage left behind would keep it full.
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return final


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
    """Return the newest checkpoint (of one step) whose every file is as published; set aside the damaged ones."""
    for directory in published(roots):
        if step is not None and step_of(directory) != step:
            continue
        try:
            manifest.verify(directory)
            return directory
        except Damaged as damage:
            on_damage(atomic.set_aside(directory, ".damaged"), damage)
    return None


def restore(directory: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> LoopState:
    """Load a verified checkpoint into model, optimiser and random generators."""
    parameters = trained_parameters(model)
    weights = load_file(directory / "weights.safetensors")
    if weights.keys() != parameters.keys():
        raise ValueError(f"{directory} holds other weights than this job trains")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    optimizers.restore(model, optimizer, load_file(directory / "optimizer.safetensors"))
    devices.set_rng_state(next(model.parameters()).device, load_file(directory / "random.safetensors"))
    return LoopState.read(directory / STATE)


def prune(roots: Sequence[Path], *, keep: int, best_step: int) -> list[int]:
    """Remove all but the `keep` newest checkpoints and the best one; return the steps of which none is left."""
    doomed = [path for path in published(roots)[keep:] if step_of(path) != best_step]
    for path in doomed:
        atomic.remove_tree(path)
    # Two attempts may each have saved the same step.
    left = {step_of(path) for path in published(roots)}
    return [step for step in dict.fromkeys(map(step_of, doomed)) if step not in left]
