"""What runs were seen to take, beside what was planned: one row for each job, kept when the job is gone.

The rule: `planned` is the sum before any correction, so that a correction learns from the formula and not from itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from store import fence as fences
from store.db import first_row, insert, tuples
from store.library import Database


@dataclass(frozen=True)
class Peak:
    """One run's peak on a device, in bytes; `mode` names the runs that it is comparable to."""

    job_id: str
    device: str
    mode: str
    planned: int
    measured: int
    created_at: float


def record(db: Database, peak: Peak, *, fence: int | None = None) -> int:
    """Keep a run's peak: of several attempts, that of the one that took most.

    With `fence`, only while the attempt under it has the job. Returns the number of rows.
    """
    known = of_job(db, peak.job_id)
    if not fences.holds(db, peak.job_id, fence) or (known is not None and peak.measured < known.measured):
        return 0
    insert(db, "memory_peaks", vars(peak), replace=True)
    return 1


def of_job(db: Database, job_id: str) -> Peak | None:
    """Return the peak of a job, where it was measured."""
    row = first_row(db, "SELECT * FROM memory_peaks WHERE job_id = ?", [job_id])
    return Peak(**row) if row else None


def ratios(db: Database, device: str, mode: str, *, newest: int) -> list[float]:
    """Return measured over planned of the newest runs of this mode on this device, newest first."""
    sql = (
        "SELECT 1.0 * measured / planned FROM memory_peaks WHERE device = ? AND mode = ? AND planned > 0 "
        "ORDER BY created_at DESC LIMIT ?"
    )
    return [float(row[0]) for row in tuples(db, sql, [device, mode, newest])]
