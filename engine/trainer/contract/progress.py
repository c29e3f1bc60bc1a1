"""How far a contract job is: its phases' shares of the work, and the seconds that are left."""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.trainer.reporter import Reporter

# Where each phase begins and what share of the job it is, measured on SmolLM2-135M on two cores.
SHARES = {
    "calibrate": (0.0, 0.5),
    "judge": (0.5, 0.03),
    "choose": (0.53, 0.02),
    "prune": (0.55, 0.4),
    "end": (0.95, 0.05),
}


class Progress:
    """Tells what is being done, and what share of the job's work is; where steps of a healing come, those tell."""

    def __init__(self, reporter: Reporter, *, alone: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """`alone`: no steps come behind the phases, so their shares are those of the job."""
        self._reporter = reporter
        self._alone = alone
        self._clock = clock
        self._began: tuple[float, float] | None = None

    def tell(self, phase: str, share: float, text: str) -> None:
        """Say that `share` of a phase is done."""
        if not self._alone:
            self._reporter.activity(text)
            return
        begin, size = SHARES[phase]
        done, now = begin + share * size, self._clock()
        if self._began is None:
            # What an earlier attempt did, this one skipped.
            self._began = (done, now)
        first, then = self._began
        eta = (now - then) / (done - first) * (1 - done) if done > first else None
        self._reporter.activity(text, done=done, eta_s=eta)
