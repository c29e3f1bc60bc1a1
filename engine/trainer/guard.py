"""The guard against bad steps: a spike is skipped, no-numbers are skipped, and three of those in a row end the matter.

Practice of OLMo-core (steps above mean + 6σ of the last 128 are skipped) and PaLM (arXiv 2204.02311, §5.1: go back to
a checkpoint and leave the data out).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

WINDOW = 128
ACTIVE_AFTER = 64
SIGMAS = 6.0
NO_NUMBERS_AT_MOST = 3
# Loss and norm of a model that is done learning hardly move: what is this little above the mean is no spike.
LEAST_RISE = 0.1


@dataclass
class Guard:
    """What it has seen: the last losses and gradient norms, no-numbers in a row. Part of a checkpoint."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    no_numbers: int = 0

    def judge(self, loss: float, norm: float) -> str | None:
        """Take in a step's loss and gradient norm; return "nan" or "spike" where the step must be skipped."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.no_numbers += 1
            return "nan"
        self.no_numbers = 0
        spike = _stands_out(loss, self.losses) or _stands_out(norm, self.norms)
        # A spike is remembered too: what stays high is the new normal, and training must not skip it for ever.
        self.losses = [*self.losses, loss][-WINDOW:]
        self.norms = [*self.norms, norm][-WINDOW:]
        return "spike" if spike else None

    @property
    def hopeless(self) -> bool:
        """Whether so many no-numbers came in a row that skipping more steps is no use."""
        return self.no_numbers >= NO_NUMBERS_AT_MOST


def _stands_out(value: float, seen: list[float]) -> bool:
    if len(seen) < ACTIVE_AFTER:
        return False
    mean = statistics.fmean(seen)
    return value > mean + max(SIGMAS * statistics.pstdev(seen, mean), LEAST_RISE * abs(mean))
