"""Where a step's time goes, without making it longer: events on a card, the clock elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds of named parts of one step."""

    def __init__(self, device: torch.device) -> None:
        self._card = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done inside as `name`."""
        if not self._card:
            begun = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begun
            return
        # Work on a card is queued: its own events tell when it was done, and nobody has to wait.
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        yield
        last.record()
        self._events.append((name, first, last))

    def seconds(self) -> dict[str, float]:
        """Return the parts' seconds; call it once the device is done with the step."""
        for name, first, last in self._events:
            self._seconds[name] += first.elapsed_time(last) / 1000
        self._events = []
        return dict(self._seconds)
