"""What the phases of a job left behind, so that an attempt after a kill goes on behind the last one that was finished.

The rule: a phase is published whole, sealed with a manifest, in the folder of the attempt that did it; what is found
damaged counts as not done. As in a checkpoint, tensors are safetensors and the rest is JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engine import atomic, manifest, resources
from engine.manifest import Damaged

FOLDER = "phases"
FACTS, TENSORS = "facts.json", "tensors.safetensors"


@dataclass(frozen=True)
class Phase:
    """What a phase found: facts as JSON holds them, and tensors by name, on the CPU."""

    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class Phases:
    """The finished phases of one job, over all its attempts."""

    def __init__(self, checkpoint_roots: Sequence[Path], log: Callable[[str], object] = lambda text: None) -> None:
        """Look beside the checkpoints of each attempt, this one's first. `log` hears what is found damaged."""
        self._folders = [root.parent / FOLDER for root in checkpoint_roots]
        self._log = log
        self.skipped = False  # whether something was there already, so that this attempt did not do it
        self.seconds = 0.0  # that the phases which went `through` took, over all attempts

    def load(self, name: str) -> Phase | None:
        """Return what the phase `name` left, or None where no attempt finished it."""
        for folder in self._folders:
            found = folder / name
            if not found.is_dir():
                continue
            try:
                manifest.verify(found)
                facts = json.loads((found / FACTS).read_text())
                tensors = load_file(found / TENSORS) if (found / TENSORS).exists() else {}
                self.skipped = True
                return Phase(facts, tensors)
            except (Damaged, OSError, ValueError) as damage:
                self._log(f"What the phase {name} left is damaged ({damage}); it is done again.")
        return None

    def save(self, name: str, phase: Phase) -> None:
        """Publish what the phase `name` found. Raises NoSpace, DiskFailed."""
        folder = self._folders[0]
        with atomic.telling(f"saving what the phase {name} found", folder.parent):
            atomic.make_folder(folder)
            size = sum(tensor.numel() * tensor.element_size() for tensor in phase.tensors.values())
            resources.need_space(folder, size, f"what the phase {name} found")
            staged = folder / f".stage-{name}"
            atomic.discard(staged)
            try:
                atomic.step(staged.mkdir, mode=0o700)
                if phase.tensors:
                    held = {key: tensor.detach().cpu().contiguous() for key, tensor in phase.tensors.items()}
                    atomic.step(save_file, held, staged / TENSORS)
                atomic.write_json(staged / FACTS, phase.facts)
                manifest.seal(staged, {"phase": name})
                atomic.publish(staged, folder / name, replace=True)
            except BaseException:
                atomic.discard(staged)
                raise

    def through(self, name: str, work: Callable[[], Phase]) -> Phase:
        """Return what the phase `name` found, doing it where no attempt has; its facts say the `seconds` it took."""
        found = self.load(name)
        if found is None:
            begun = time.monotonic()
            done = work()
            found = Phase({"seconds": time.monotonic() - begun} | done.facts, done.tensors)
            self.save(name, found)
        self.seconds += found.facts["seconds"]
        return found
