"""Attempts: one row for each time a job was claimed, with the worker's identity and its journal's offset.

The rule: an attempt is open until `close`; everything written about it carries its fence, and changes no row once the
attempt is closed or its job was claimed again. A job has one open attempt at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from store import fence as fences
from store.db import all_rows, first_row, insert
from store.library import Database


@dataclass(frozen=True)
class Attempt:
    """One try at a job. `pid` is None until the worker's identity was committed; `heard_at` is when its newest journal
    line was written; `exit_code` is as subprocess gives it (-9: killed), None where nobody could tell."""

    job_id: str
    fence: int
    device: str
    directory: str
    boot_id: str | None
    pid: int | None
    start_ticks: int | None
    gate_opened: bool
    journal_offset: int
    journal_seq: int
    start_step: int
    stop_signalled_at: float | None
    outcome: str | None
    detail: str | None
    started_at: float
    ended_at: float | None
    heard_at: float | None = None
    exit_code: int | None = None


def _attempt(row: Mapping[str, Any]) -> Attempt:
    values = dict(row)
    values["gate_opened"] = bool(values["gate_opened"])
    return Attempt(**values)


def begin(db: Database, job_id: str, fence: int, *, device: str, directory: str, start_step: int, now: float) -> None:
    """Record that a job was claimed for `device`; its worker does not exist yet. An earlier attempt ends with that."""
    # None is open here unless something went wrong that nobody thought of; it must not hold its device for ever.
    db.conn.execute(
        "UPDATE attempts SET ended_at = ?, outcome = coalesce(outcome, 'lost') "
        "WHERE job_id = ? AND fence <> ? AND ended_at IS NULL",
        [now, job_id, fence],
    )
    insert(
        db,
        "attempts",
        {
            "job_id": job_id,
            "fence": fence,
            "device": device,
            "directory": directory,
            "start_step": start_step,
            "started_at": now,
        },
    )


def update(db: Database, job_id: str, fence: int, **columns: Any) -> int:
    """Set columns of the attempt that has the job now. Returns the number of rows: 0 for a closed or a stale one."""
    assignments = ", ".join(f"{name} = ?" for name in columns)
    return db.conn.execute(
        f"UPDATE attempts SET {assignments} WHERE job_id = ? AND fence = ? AND {fences.HOLDS}",  # noqa: S608
        [*columns.values(), job_id, fence, job_id, fence],
    ).rowcount


def close(
    db: Database, job_id: str, fence: int, *, outcome: str, detail: str | None, now: float, **columns: Any
) -> int:
    """End an attempt with its outcome: completed, failed, cancelled, preempted, lost or unstarted.

    Returns the number of rows: 0, with nothing changed, where it is closed already or the job was claimed again.
    """
    return update(db, job_id, fence, outcome=outcome, detail=detail, ended_at=now, **columns)


def is_current(db: Database, job_id: str, fence: int) -> bool:
    """Say whether this attempt has its job now: it is open, and its fence is the job's."""
    return fences.holds(db, job_id, fence)


def get(db: Database, job_id: str, fence: int) -> Attempt | None:
    """Return one attempt, if it exists."""
    row = first_row(db, "SELECT * FROM attempts WHERE job_id = ? AND fence = ?", [job_id, fence])
    return _attempt(row) if row else None


def open_attempts(db: Database) -> list[Attempt]:
    """Return the attempts that have not ended, oldest first."""
    return [_attempt(row) for row in all_rows(db, "SELECT * FROM attempts WHERE ended_at IS NULL ORDER BY started_at")]


def of_job(db: Database, job_id: str) -> list[Attempt]:
    """Return a job's attempts, oldest first."""
    return [_attempt(row) for row in all_rows(db, "SELECT * FROM attempts WHERE job_id = ? ORDER BY fence", [job_id])]
