"""What was asked of jobs while they are worked on: a checkpoint now; to go, with all that they made.

The rule: each is a flag on the job and an event in its history, written together; a flag stands until what was asked
is done, whoever dies meanwhile.
"""

from __future__ import annotations

from store import jobs, states
from store.db import all_rows, first_row
from store.library import Database

SAVE = "save_requested"
GO = "delete_requested"
ALL, ALL_BUT_MODEL = 1, 2  # what is to go; 0 for nothing


def to_save(db: Database, job_id: str, *, now: float) -> None:
    """Ask for a checkpoint of a job; asked for again before there is one, it is to hold the steps until then."""
    jobs.update(db, job_id, save_requested=1)
    jobs.add_event(db, job_id, SAVE, {}, now=now)


def save_asked_at(db: Database, job_id: str) -> float:
    """Return when a checkpoint of a job was last asked for; minus infinity where it never was."""
    row = first_row(db, "SELECT max(ts) AS ts FROM events WHERE job_id = ? AND kind = ?", [job_id, SAVE])
    return float("-inf") if row is None or row["ts"] is None else float(row["ts"])


def is_saved(db: Database, job_id: str, *, ts: float, fence: int) -> None:
    """Take note of a checkpoint that was told of at `ts`: it is what was asked for, if it was asked before.

    No step is made between the saving and the telling, so that all steps before the asking are in it.
    """
    if save_asked_at(db, job_id) <= ts:
        jobs.update(db, job_id, fence=fence, save_requested=0)


def to_go(db: Database, job_id: str, *, now: float, keep_model: bool = False) -> None:
    """Ask for a job to be deleted as soon as nothing works on it, with the model that it makes or without.

    Of two who ask for either, the model goes. Raises NotFound.
    """
    wanted = ALL_BUT_MODEL if keep_model else ALL
    if _to_go(db, job_id) not in (wanted, ALL):
        jobs.update(db, job_id, delete_requested=wanted)
        jobs.add_event(db, job_id, GO, {"model": "stays"} if keep_model else {}, now=now)


def keeps_model(db: Database, job_id: str) -> bool:
    """Say whether a job that is to be deleted leaves the model that it made."""
    return _to_go(db, job_id) == ALL_BUT_MODEL


def _to_go(db: Database, job_id: str) -> int:
    row = first_row(db, "SELECT delete_requested FROM jobs WHERE id = ?", [job_id])
    return int(row[GO]) if row else 0


def to_stay(db: Database, job_id: str, why: str, *, now: float) -> None:
    """Take back that a job is to be deleted, and say why in its history."""
    jobs.update(db, job_id, delete_requested=0)
    jobs.add_event(db, job_id, "delete_refused", {"why": why}, now=now)


def going(db: Database) -> list[str]:
    """Return the ids of the jobs that are to be deleted and that nothing works on any more, oldest first."""
    ended = ", ".join(f"'{state}'" for state in sorted(states.FINISHED))
    sql = f"SELECT id FROM jobs WHERE state IN ({ended}) AND delete_requested > 0 ORDER BY seq"  # noqa: S608
    return [row["id"] for row in all_rows(db, sql)]
