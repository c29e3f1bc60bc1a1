"""The most memory that this process has had on its device, and in which phase of the run that was."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from engine.plans.memory import CONTEXT


def peak_bytes(device: torch.device) -> int:
    """Return the peak until now: reserved and context on a card, resident on the CPU.

    The context is what the plan takes it to be, for torch does not see it; Metal tells no peak, but what it holds now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + CONTEXT["cuda"]
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory()) + CONTEXT["mps"]
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024  # one counts bytes, the others kB


class Peak:
    """Told at the end of each phase, it knows in which one the peak was reached."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes, self.phase = 0, ""

    def passed(self, phase: str) -> None:
        """Take note of the end of a phase: loading, evaluation, training or publishing."""
        now = peak_bytes(self._device)
        if now > self.bytes:
            self.bytes, self.phase = now, phase
