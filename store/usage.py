"""What the queue has used up: time on devices, tokens, jobs, out of the rows that are there.

The rule: read, never kept: what a deleted job used went with its rows.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from store.db import tuples
from store.library import Database


class Span(NamedTuple):
    """A worker's time on a device, in seconds since 1970; one that still works has no end.

    A worker's end is when it last spoke: an attempt is closed when somebody finds it dead, which after a power cut may
    be days later.
    """

    begun: float
    ended: float | None


class Spent(NamedTuple):
    """Tokens that a job has processed, and when it told so."""

    tokens: int
    at: float


class Run(NamedTuple):
    """A finished run of a model: what it took, and on what."""

    type: str
    model_id: str
    device: str
    tokens: int
    seconds: float


def spans(db: Database, *, since: float) -> list[Span]:
    """Return the time of the workers that had begun, as far as it ended after `since`."""
    # Attempts of an early store have no heard_at, though they ended in their own words.
    last = "coalesce(heard_at, CASE outcome WHEN 'lost' THEN started_at ELSE ended_at END)"
    ended = f"min(ended_at, {last})"  # NULL while it works
    sql = f"SELECT started_at, {ended} FROM attempts WHERE gate_opened = 1 AND coalesce({ended}, ?1) >= ?1"  # noqa: S608
    return [Span._make(row) for row in tuples(db, sql, [since])]


def tokens(db: Database, *, since: float) -> list[Spent]:
    """Return what each job processed: by its result, or as far as its telemetry tells where it has none."""
    with_result = "SELECT body, created_at FROM results WHERE created_at >= ?"
    found = [(json.loads(body).get("tokens_processed"), at) for body, at in tuples(db, with_result, [since])]
    without = (
        "SELECT m.tokens, m.ts FROM jobs AS j JOIN metrics AS m ON m.job_id = j.id AND m.phase = 'train' AND m.step = "
        "(SELECT step FROM metrics WHERE job_id = j.id AND phase = 'train' ORDER BY step DESC LIMIT 1) "
        "WHERE j.started_at IS NOT NULL AND coalesce(j.finished_at, ?1) >= ?1 AND m.ts >= ?1 "
        "AND NOT EXISTS (SELECT 1 FROM results WHERE job_id = j.id)"
    )
    found += tuples(db, without, [since])
    return [Spent(int(count), at) for count, at in found if isinstance(count, int | float)]


def submitted(db: Database, *, since: float) -> list[float]:
    """Return when each job was submitted that was after `since`."""
    return [row[0] for row in tuples(db, "SELECT created_at FROM jobs WHERE created_at >= ?", [since])]


def runs(db: Database, *, type: str, newest: int) -> list[Run]:
    """Return the newest runs of a type that tell how fast they were, newest first."""
    sql = (
        "SELECT r.body, coalesce(j.base_model_id, j.source_model_id), j.plan, j.type FROM jobs AS j "
        "JOIN results AS r ON r.job_id = j.id WHERE j.type = ? ORDER BY j.seq DESC LIMIT ?"
    )
    found = []
    for body, model_id, plan, kind in tuples(db, sql, [type, newest]):
        told, device = json.loads(body), (json.loads(plan) if plan else {}).get("device")
        counts: tuple[Any, Any] = (told.get("tokens_processed"), told.get("gpu_seconds"))
        if device and model_id and all(isinstance(one, int | float) and one > 0 for one in counts):
            found.append(Run(kind, model_id, device, int(counts[0]), float(counts[1])))
    return found
