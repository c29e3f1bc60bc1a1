"""Attempts: one row for each time a job was claimed, with the worker's identity and its journal's offset.

The rule: an attempt is open until `close`; everything written about it carries its fence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from store.db import first_row
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
    """Record that a job was claimed for `device`; its worker does not exist yet."""
    db.table("attempts").insert(
        {
            "job_id": job_id,
            "fence": fence,
            "device": device,
            "directory": directory,
            "start_step": start_step,
            "started_at": now,
        }
    )


def update(db: Database, job_id: str, fence: int, **columns: Any) -> None:
    """Set columns of one attempt."""
    assignments = ", ".join(f"{name} = ?" for name in columns)
    db.conn.execute(
        f"UPDATE attempts SET {assignments} WHERE job_id = ? AND fence = ?",  # noqa: S608
        [*columns.values(), job_id, fence],
    )


def close(db: Database, job_id: str, fence: int, *, outcome: str, detail: str | None, now: float) -> None:
    """End an attempt with its outcome: completed, failed, cancelled, preempted or lost."""
    update(db, job_id, fence, outcome=outcome, detail=detail, ended_at=now)


def get(db: Database, job_id: str, fence: int) -> Attempt | None:
    """Return one attempt, if it exists."""
    row = first_row(db, "SELECT * FROM attempts WHERE job_id = ? AND fence = ?", [job_id, fence])
    return _attempt(row) if row else None


def open_attempts(db: Database) -> list[Attempt]:
    """Return the attempts that have not ended, oldest first."""
    return [_attempt(row) for row in db.query("SELECT * FROM attempts WHERE ended_at IS NULL ORDER BY started_at")]


def of_job(db: Database, job_id: str) -> list[Attempt]:
    """Return a job's attempts, oldest first."""
    return [_attempt(row) for row in db.query("SELECT * FROM attempts WHERE job_id = ? ORDER BY fence", [job_id])]
