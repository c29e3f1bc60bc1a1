"""How a worker's process ended, as far as anyone can tell, and in which words.

The rule: an exit status is judged here alone; what follows from the verdict is `engine.running.recover`'s to decide.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.order import UNTOLD

# Signals that a process brings upon itself.
_OWN = {
    number: words
    for name, words in (
        ("SIGSEGV", "a segmentation fault"),
        ("SIGABRT", "an abort"),
        ("SIGBUS", "a bus error"),
        ("SIGILL", "an illegal instruction"),
        ("SIGFPE", "an arithmetic error"),
        ("SIGSYS", "a system call that is not allowed"),
        ("SIGTRAP", "a trap"),
    )
    if (number := getattr(signal, name, None))
}
OOM_WINDOW_SECONDS = 10.0  # what was killed for lack of memory takes a while to give back all of it


@dataclass(frozen=True)
class Death:
    """The end of a worker that said nothing of it. `exit_code` is as subprocess gives it, None where nobody could tell;
    `out_of_memory`: the system killed some process for lack of memory just then; `disk_full`: so was the disk."""

    exit_code: int | None = None
    out_of_memory: bool = False
    disk_full: bool = False

    @property
    def own_fault(self) -> bool:
        """Whether the worker brought it upon itself, so that it would again; False where nobody could tell."""
        code = self.exit_code
        return code is not None and code != UNTOLD and (code >= 0 or -code in _OWN)

    @property
    def signal(self) -> int | None:
        """The signal that ended it, if one did."""
        return -self.exit_code if self.exit_code is not None and self.exit_code < 0 else None

    @property
    def words(self) -> str:
        """The cause, for a sentence that says that the worker was lost."""
        number = self.signal
        if self.out_of_memory and number in (None, signal.SIGKILL):
            return "killed by the system for lack of memory"
        if number in _OWN:
            return f"{_OWN[number]} (signal {number})"
        if number is not None:
            return f"killed by signal {number}"
        if self.exit_code == UNTOLD:
            return "left because its journal could not be written"
        if self.exit_code is not None:
            return f"left with exit status {self.exit_code} and no word of how it ended"
        return "gone, nobody saw how"


def oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes the kernel has killed for lack of memory, in this machine or a control group of it."""
    try:
        for line in vmstat.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0  # macOS, or an old kernel


class OomWatch:
    """Says whether the kernel killed something for lack of memory in the last 10 to 20 seconds.

    The count is the whole machine's, so only what rose just before a worker's death is held to be its cause.
    """

    def __init__(self, count: Callable[[], int] = oom_kills, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._before = self._last = count()
        self._at = clock()

    def look(self) -> None:
        """Take note of the count; cheap, so call it in every round."""
        if self._clock() - self._at >= OOM_WINDOW_SECONDS:
            self._before, self._last, self._at = self._last, self._count(), self._clock()

    def rose(self) -> bool:
        """Say whether the count is higher than it was."""
        return self._count() > self._before
