"""Learning rate as a pure function of the step, so that resuming needs no scheduler's state."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, peak: float, shape: str, warmup: int) -> float:
    """Return the rate for optimiser step `step` (the first is 1) of `steps`.

    Linear from 0 to `peak` over `warmup` steps, then cosine or linear to a tenth of `peak`, or constant.
    """
    if step <= warmup:
        return peak * step / warmup
    if shape == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    falling = (1 + math.cos(math.pi * done)) / 2 if shape == "cosine" else 1 - done
    return peak * (0.1 + 0.9 * falling)
