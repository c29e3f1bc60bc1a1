"""Jobs and their events: one row per job, one event per change of state.

The rule: the row equals the fold of its events. `transition` is the only function that writes `state`,
by compare-and-set on (id, state, fence), with its event in the same transaction. So is what the jobs that start after
it are told: why they wait is never older than the state that they wait for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from store import states
from store.db import all_rows, first_row
from store.db import insert as insert_row
from store.errors import NotFound
from store.library import Database
from store.selecting import where

GOING = "stopping; will be deleted"  # what a job does that is to be deleted, whatever its worker says
AFTER = "after"  # what the hold of a job begins with that waits for another one's end
# The states that change what those who wait are told; between claim and end it is one word, running.
_TOLD = {states.QUEUED, states.PROVISIONING, states.COMPLETED, states.FAILED, states.CANCELLED}
# Startable: not waiting for a job that is not completed. One that was deleted is for the start to judge.
_DUE = (
    "state = 'queued' AND not_before <= ? AND (after_id IS NULL OR NOT EXISTS "
    "(SELECT 1 FROM jobs AS earlier WHERE earlier.id = jobs.after_id AND earlier.state <> 'completed'))"
)


@dataclass(frozen=True)
class Job:
    """A job as stored. Times are seconds since 1970; `eta_s` is seconds; `fence` counts claims.

    Nobody changes one, nor what it holds: the same object is given to all who ask.
    """

    seq: int
    id: str
    type: str
    name: str
    state: str
    fence: int
    retries: int
    idempotency_key: str
    payload_hash: str
    hyperparams: dict[str, Any]
    base_model_id: str | None
    source_model_id: str | None
    dataset_id: str | None
    output_model_id: str | None
    tags: list[str]
    notes: str
    step: int
    total_steps: int
    last_checkpoint_step: int
    activity: str
    eta_s: float | None
    stop_requested: bool
    hold: str | None
    not_before: float
    error: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    plan: dict[str, Any] | None = None  # the memory plan as of the submit
    after_id: str | None = None  # the job that must be completed before this one starts
    done: float | None = None  # share of the work, as the worker says where steps do not tell
    project_id: str | None = None
    more_dataset_ids: tuple[str, ...] = ()  # read after dataset_id, as one dataset
    checkpoint_id: str | None = None  # the checkpoint of an earlier job whose weights this one starts from
    save_requested: bool = False
    delete_requested: bool = False  # once the worker has stopped, with the model that the job made

    def __hash__(self) -> int:
        return hash((self.id, self.state, self.step))

    @property
    def finished(self) -> bool:
        """Whether the job has reached completed, failed or cancelled."""
        return self.state in states.FINISHED

    @property
    def progress(self) -> float:
        """Share of the work done, 0 to 1: as the worker says, else of the optimiser steps."""
        if self.state == states.COMPLETED:
            return 1.0
        if self.done is not None:
            return self.done
        return min(self.step / self.total_steps, 1.0) if self.total_steps else 0.0


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; `kind` is `state` for a change of state."""

    id: int
    ts: float
    kind: str
    payload: dict[str, Any]


def _job(row: Mapping[str, Any]) -> Job:
    """Return a row as a job; the same object for as long as the row is the same, for most are asked for again."""
    return _read(tuple(row), tuple(row.values()))


@lru_cache(maxsize=2048)
def _read(names: tuple[str, ...], texts: tuple[Any, ...]) -> Job:
    values = dict(zip(names, texts, strict=True))
    for field in ("hyperparams", "tags"):
        values[field] = json.loads(values[field])
    values["plan"] = json.loads(values["plan"]) if values["plan"] else None
    values["more_dataset_ids"] = tuple(json.loads(values["more_dataset_ids"]))
    for flag in ("stop_requested", "save_requested", "delete_requested"):
        values[flag] = bool(values[flag])
    if values["delete_requested"]:
        values["activity"] = GOING
    return Job(**values)


def insert(
    db: Database,
    *,
    id: str,
    type: str,
    name: str,
    idempotency_key: str,
    payload_hash: str,
    hyperparams: Mapping[str, Any],
    base_model_id: str | None,
    source_model_id: str | None,
    dataset_id: str | None,
    tags: Sequence[str],
    notes: str,
    total_steps: int,
    now: float,
    plan: Mapping[str, Any] | None = None,
    after_id: str | None = None,
    project_id: str | None = None,
    more_dataset_ids: Sequence[str] = (),
    checkpoint_id: str | None = None,
) -> Job:
    """Add a queued job with its first event, and its hold where it starts after another that is not completed."""
    hold = hold_after(db, after_id)
    insert_row(
        db,
        "jobs",
        {
            "id": id,
            "type": type,
            "name": name,
            "state": states.QUEUED,
            "idempotency_key": idempotency_key,
            "payload_hash": payload_hash,
            "hyperparams": json.dumps(dict(hyperparams)),
            "base_model_id": base_model_id,
            "source_model_id": source_model_id,
            "dataset_id": dataset_id,
            "tags": json.dumps(list(tags)),
            "notes": notes,
            "total_steps": total_steps,
            "created_at": now,
            "plan": json.dumps(dict(plan)) if plan else None,
            "after_id": after_id,
            "project_id": project_id,
            "more_dataset_ids": json.dumps(list(more_dataset_ids)),
            "checkpoint_id": checkpoint_id,
            "hold": hold,
        },
    )
    add_event(db, id, "state", {"from": None, "to": states.QUEUED}, now=now)
    if hold:
        add_event(db, id, "hold", {"why": hold}, now=now)
    return get(db, id)


def get(db: Database, job_id: str) -> Job:
    """Return the job with this id. Raises NotFound."""
    row = first_row(db, "SELECT * FROM jobs WHERE id = ?", [job_id])
    if row:
        return _job(row)
    raise NotFound(f"No job has the id {job_id}.")


def name_of(db: Database, job_id: str) -> str | None:
    """Return the name of the job with exactly this id; None where there is none."""
    row = first_row(db, "SELECT name FROM jobs WHERE id = ?", [job_id])
    return row["name"] if row else None


def by_idempotency_key(db: Database, key: str) -> Job | None:
    """Return the job that was submitted under `key`, if any."""
    row = first_row(db, "SELECT * FROM jobs WHERE idempotency_key = ?", [key])
    return _job(row) if row else None


def find(db: Database, reference: str, limit: int = 10) -> list[Job]:
    """Return jobs whose id starts with `reference` or whose name equals it, newest first."""
    escaped = reference.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    sql = "SELECT * FROM jobs WHERE id LIKE ? ESCAPE '\\' OR name = ? ORDER BY seq DESC LIMIT ?"
    return [_job(row) for row in all_rows(db, sql, [escaped + "%", reference, limit])]


def newest(
    db: Database,
    *,
    state: str | None = None,
    states: Sequence[str] = (),
    project_id: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Job]:
    """Return jobs, newest first: of one state, of any of several, or of one project, where these are given."""
    condition, values = where([state] if state else states, project_id)
    sql = f"SELECT * FROM jobs {condition} ORDER BY seq DESC LIMIT ? OFFSET ?"  # noqa: S608
    return [_job(row) for row in all_rows(db, sql, [*values, -1 if limit is None else limit, offset])]


def count(db: Database) -> dict[str, int]:
    """Return the number of jobs in each state that has any."""
    return {row["state"]: row["n"] for row in all_rows(db, "SELECT state, count(*) AS n FROM jobs GROUP BY state")}


def is_queued(db: Database, *, now: float) -> bool:
    """Say whether there is a queued job whose time has come and that waits for no other job."""
    return first_row(db, f"SELECT 1 FROM jobs WHERE {_DUE} LIMIT 1", [now]) is not None  # noqa: S608


def next_queued(db: Database, *, now: float, limit: int = -1) -> list[Job]:
    """Return the jobs that `is_queued` speaks of, oldest first, `limit` of them at most."""
    sql = f"SELECT * FROM jobs WHERE {_DUE} ORDER BY seq LIMIT ?"  # noqa: S608
    return [_job(row) for row in all_rows(db, sql, [now, limit])]


def followers(db: Database, job_id: str) -> list[Job]:
    """Return the queued jobs that start after this one, oldest first."""
    sql = "SELECT * FROM jobs WHERE state = 'queued' AND after_id = ? ORDER BY seq"
    return [_job(row) for row in all_rows(db, sql, [job_id])]


def taking(db: Database, model_id: str) -> Job | None:
    """Return the oldest job that starts from this source model after another job, if any."""
    sql = "SELECT * FROM jobs WHERE source_model_id = ? AND after_id IS NOT NULL ORDER BY seq LIMIT 1"
    row = first_row(db, sql, [model_id])
    return _job(row) if row else None


def types(db: Database, job_ids: Sequence[str]) -> dict[str, str]:
    """Return the type of each of these jobs that is there."""
    marks = ", ".join("?" * len(job_ids))
    sql = f"SELECT id, type FROM jobs WHERE id IN ({marks})"  # noqa: S608
    return {row["id"]: row["type"] for row in all_rows(db, sql, list(job_ids))}


def hold_after(db: Database, job_id: str | None) -> str | None:
    """Return the hold of a job that starts after `job_id`; None where it need not wait for it."""
    row = _waited_for(db, job_id)
    if row is None or row["state"] == states.COMPLETED:
        return None
    if stopped := stopped_before(db, job_id):
        verb = "failed" if stopped["state"] == states.FAILED else "was cancelled"
        return f"{AFTER}: {stopped['name']} {verb}; retry it ({stopped['id'][:8]}), or cancel this run"
    word = "running" if row["state"] in states.ACTIVE else row["state"]
    return f"{AFTER}: waits for {row['name']} ({word})"


def _waited_for(db: Database, job_id: str | None) -> Mapping[str, Any] | None:
    return first_row(db, "SELECT id, name, state, after_id FROM jobs WHERE id = ?", [job_id])


def stopped_before(db: Database, job_id: str | None) -> Mapping[str, Any] | None:
    """Return the failed or cancelled job (id, name, state) for which all wait that start after `job_id`: that one, or
    the nearest of those for which it waits itself. None where there is none."""
    row = _waited_for(db, job_id)
    while row is not None and row["state"] == states.QUEUED:
        row = _waited_for(db, row["after_id"])
    return row if row and row["state"] in (states.FAILED, states.CANCELLED) else None


def is_any_hopeful(db: Database) -> bool:
    """Say whether a queued job can start, now or when what is under way has ended.

    One for which those behind it wait is enough, so of a chain only the first queued job has to be looked at.
    """
    sql = (
        "SELECT 1 FROM jobs WHERE state = 'queued' AND (after_id IS NULL OR NOT EXISTS (SELECT 1 FROM jobs AS earlier "
        "WHERE earlier.id = jobs.after_id AND earlier.state IN ('queued', 'failed', 'cancelled'))) LIMIT 1"
    )
    return first_row(db, sql) is not None


def _tell_followers(db: Database, job_id: str) -> None:
    """Renew the holds of the queued jobs that start after this one, and of those that start after them."""
    waiting = "state = 'queued' AND after_id = ?"
    told = [job_id]
    for before in told:
        found = all_rows(db, f"SELECT id FROM jobs WHERE {waiting}", [before])  # noqa: S608
        if found:
            db.conn.execute(f"UPDATE jobs SET hold = ? WHERE {waiting}", [hold_after(db, before), before])  # noqa: S608
            told += [row["id"] for row in found]


def transition(
    db: Database,
    job_id: str,
    to: str,
    *,
    fence: int,
    now: float,
    new_fence: int | None = None,
    detail: Mapping[str, Any] | None = None,
    **columns: Any,
) -> bool:
    """Move a job to state `to` if that is legal and `fence` is the current one; also set `columns`.

    A claim gives `new_fence`, which makes everything that was started under the old one stale.

    Returns False, with nothing written, when the job is in no state that leads to `to`, or the fence is stale.
    """
    before = first_row(db, "SELECT state FROM jobs WHERE id = ?", [job_id])
    if before is None or to not in states.TRANSITIONS[before["state"]]:
        return False
    if new_fence is not None:
        columns["fence"] = new_fence
    assignments = "".join(f", {name} = ?" for name in columns)
    changed = db.conn.execute(
        f"UPDATE jobs SET state = ?{assignments} WHERE id = ? AND state = ? AND fence = ?",  # noqa: S608
        [to, *columns.values(), job_id, before["state"], fence],
    ).rowcount
    if changed:
        add_event(db, job_id, "state", {"from": before["state"], "to": to, **(detail or {})}, now=now)
        if to in _TOLD:
            _tell_followers(db, job_id)
    return bool(changed)


def update(db: Database, job_id: str, *, fence: int | None = None, **columns: Any) -> int:
    """Set columns other than the state; with `fence`, only while that is the job's. Lists are stored as JSON.

    Returns the number of rows: 0 for a stale fence. Raises NotFound where no fence is asked and no job has this id.
    """
    values = [json.dumps(value) if isinstance(value, list) else value for value in columns.values()]
    assignments = ", ".join(f"{name} = ?" for name in columns)
    changed = db.conn.execute(
        f"UPDATE jobs SET {assignments} WHERE id = ? AND fence = coalesce(?, fence)",  # noqa: S608
        [*values, job_id, fence],
    ).rowcount
    if not changed and fence is None:
        raise NotFound(f"No job has the id {job_id}.")
    return changed


def edit(db: Database, job_id: str, changed: Mapping[str, Any]) -> None:
    """Give a job another name, other tags or notes; those that wait for it are told its name."""
    update(db, job_id, **changed)
    _tell_followers(db, job_id)


def branches(db: Database, job_id: str) -> list[Job]:
    """Return the unfinished jobs that start from a checkpoint of this one, oldest first."""
    ended = ", ".join(f"'{state}'" for state in sorted(states.FINISHED))
    sql = (
        f"SELECT * FROM jobs WHERE state NOT IN ({ended}) "  # noqa: S608
        "AND checkpoint_id IN (SELECT id FROM checkpoints WHERE job_id = ?) ORDER BY seq"
    )
    return [_job(row) for row in all_rows(db, sql, [job_id])]


def resolve(db: Database, job: Job, *, hyperparams: Mapping[str, Any], plan: Mapping[str, Any] | None) -> bool:
    """Store the settings that a queued job's model decided, and its memory plan. Returns False as `set_hold` does."""
    sql = "UPDATE jobs SET hyperparams = ?, plan = ? WHERE id = ? AND state = ? AND fence = ?"
    values = [json.dumps(dict(hyperparams)), json.dumps(dict(plan)) if plan else None]
    return bool(db.conn.execute(sql, [*values, job.id, job.state, job.fence]).rowcount)


def set_hold(db: Database, job: Job, hold: str) -> bool:
    """Say why a job waits. Returns False, with nothing written, where it is in another state than when it was read."""
    sql = "UPDATE jobs SET hold = ? WHERE id = ? AND state = ? AND fence = ?"
    return bool(db.conn.execute(sql, [hold, job.id, job.state, job.fence]).rowcount)


def delete(db: Database, job_id: str) -> None:
    """Remove a job with its attempts, events, telemetry and checkpoint rows."""
    db.conn.execute("DELETE FROM jobs WHERE id = ?", [job_id])


def add_event(
    db: Database, job_id: str, kind: str, payload: Mapping[str, Any], *, now: float, fence: int | None = None
) -> int:
    """Append an event to a job's history; with `fence`, only while that is the job's. Returns the number of rows."""
    return db.conn.execute(
        "INSERT INTO events (job_id, ts, kind, payload) "
        "SELECT ?, ?, ?, ? WHERE ? IS NULL OR EXISTS (SELECT 1 FROM jobs WHERE id = ? AND fence = ?)",
        [job_id, now, kind, json.dumps(dict(payload)), fence, job_id, fence],
    ).rowcount


def events(db: Database, job_id: str, *, after: int = 0) -> list[Event]:
    """Return a job's events, oldest first, with an id above `after`."""
    sql = "SELECT id, ts, kind, payload FROM events WHERE job_id = ? AND id > ? ORDER BY id"
    return [
        Event(row["id"], row["ts"], row["kind"], json.loads(row["payload"]))
        for row in all_rows(db, sql, [job_id, after])
    ]
