"""A process watched from outside: what it had used up by any moment of its life. Linux only.

The rule: every contestant is measured by this same look from outside, and starts in a process of its own.
"""

from __future__ import annotations

import bisect
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
LOOK_S = 0.05


@dataclass(frozen=True)
class Look:
    """One look: wall-clock time, core-seconds used until then, and the most memory resident until then in bytes."""

    ts: float
    core_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Watched:
    """A process that has ended: when it was started, its looks, its exit code and the last line it wrote."""

    started: float
    looks: list[Look]
    code: int
    last_words: str

    def core_seconds(self, ts: float) -> float:
        """Return the core-seconds (user and system, all threads) used until `ts`, interpolated between looks."""
        after = min(max(bisect.bisect_left(self.looks, ts, key=lambda look: look.ts), 1), len(self.looks) - 1)
        a, b = self.looks[after - 1], self.looks[after]
        return a.core_s + (b.core_s - a.core_s) * (ts - a.ts) / (b.ts - a.ts)

    def peak_bytes(self, ts: float) -> int:
        """Return the most memory that was resident until `ts`."""
        return max(look.peak_bytes for look in self.looks if look.ts <= ts)


def look(pid: int) -> Look | None:
    """Look at a running process; None when it is gone."""
    try:
        # The command's name, in parentheses, may hold anything: the fields begin after the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    resident = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return Look(time.time(), (int(fields[11]) + int(fields[12])) / TICKS, resident[0]) if resident else None


def watch(argv: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> Watched:
    """Run a command to its end in `folder`, where its output goes to output.log; it is ended with this process."""
    output = folder / "output.log"
    with output.open("wb") as file:
        started = time.time()
        process = subprocess.Popen(
            argv, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
        looks = []
        try:
            while process.poll() is None:
                if seen := look(process.pid):
                    looks.append(seen)
                time.sleep(LOOK_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return Watched(started, looks, process.returncode, lines[-1] if lines else "")
