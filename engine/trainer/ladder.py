"""The ladder down from an out-of-memory: smaller micro-batches, then recomputation; the experiment stays the same.

The rule: a rung changes how a step is worked out, never what it works out: the same sequences in the same order, the
same number of them in each optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

CHECKPOINTING = ("none", "selective", "full")


@dataclass(frozen=True)
class Rung:
    """How a step is worked out: sequences in each forward pass, and which activations are recomputed."""

    batch_size: int
    gradient_checkpointing: str

    def below(self) -> Rung | None:
        """Return the next rung down, or None at the foot of the ladder."""
        if self.batch_size > 1:
            return replace(self, batch_size=(self.batch_size + 1) // 2)
        place = CHECKPOINTING.index(self.gradient_checkpointing) + 1
        return replace(self, gradient_checkpointing=CHECKPOINTING[place]) if place < len(CHECKPOINTING) else None


class OutOfMemory(Exception):
    """Not even the last rung fits."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a device had no memory left (the CPU's allocator has no class of its own)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def reason(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
