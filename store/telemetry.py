"""What workers report: metric points, log lines, results, checkpoints.

The rule: one metric row per (job, step, phase). A worker that resumes at step S replaces what was
recorded after S, so the stored curve is the one that led to the current weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from store import fence as fences
from store.db import all_rows, insert, named, tuples
from store.library import Database

LOG_LINES_KEPT = 2000
LAST_STEP = 2**63 - 1  # of SQLite's integers
OWN = ("train", "eval")  # the phases whose steps are a job's own; each other one counts something of its own


class Point(NamedTuple):
    """One telemetry point; a tuple, for there are millions. `throughput`: non-padding tokens per second, `tokens`: all,
    `vram_gb` the peak reserved memory, `step_s` seconds per optimiser step and `data_s` … `save_s` its parts."""

    step: int
    phase: str
    ts: float
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    throughput: float | None = None
    vram_gb: float | None = None
    tokens: int | None = None
    epoch: float | None = None
    step_s: float | None = None
    data_s: float | None = None
    forward_s: float | None = None
    backward_s: float | None = None
    optimizer_s: float | None = None
    save_s: float | None = None
    cycle: int = 0


@dataclass(frozen=True)
class LogLine:
    """One line of a worker's output."""

    seq: int
    ts: float
    stream: str
    text: str


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint; `state` is published, quarantined or removed; one that is pinned is never removed."""

    id: str
    job_id: str
    step: int
    epoch: float
    loss: float | None
    eval_loss: float | None
    lr: float | None
    path: str
    bytes: int
    state: str
    created_at: float
    pinned: bool = False


_OF_OWN = f"phase IN ({', '.join(map(repr, OWN))})"
_POINT_SQL = ", ".join(Point._fields)
_POINT_MARKS = ", ".join("?" * (2 + len(Point._fields)))
_POINT_INSERT = f"INSERT OR REPLACE INTO metrics (job_id, fence, {_POINT_SQL}) VALUES ({_POINT_MARKS})"  # noqa: S608


def add_points(db: Database, job_id: str, fence: int, points: Iterable[tuple[Any, ...]]) -> None:
    """Insert or replace metric points, each the values of a `Point`."""
    db.conn.executemany(_POINT_INSERT, [(job_id, fence, *point) for point in points])


def forget_after(db: Database, job_id: str, step: int, *, fence: int | None = None) -> int:
    """Drop the points of the job's own steps after `step`: the worker resumed there and will write them again.

    Points of other phases count other things, and stay. Returns their number.

    Here and below, what is written with a `fence` is written only while the attempt under it has the job.
    """
    if not fences.holds(db, job_id, fence):
        return 0
    sql = f"DELETE FROM metrics WHERE job_id = ? AND step > ? AND {_OF_OWN}"  # noqa: S608
    return db.conn.execute(sql, [job_id, step]).rowcount


def points(db: Database, job_id: str, *, since_step: int = -1, phase: str | None = None) -> list[Point]:
    """Return points with a step above `since_step`, by step, eval before train at the same step.

    Of no phase in particular, those of other phases than `OWN` come with `since_step` below 0 alone, for their numbers
    are no later or earlier than the job's own steps; of a job without such steps they are all there is.
    """
    where, values = (" AND phase = ?", [phase]) if phase else ("", [])
    if not phase and since_step >= 0 and has_own_steps(db, job_id):
        where = f" AND {_OF_OWN}"
    sql = f"SELECT {_POINT_SQL} FROM metrics WHERE job_id = ? AND step > ?{where} ORDER BY step, phase"  # noqa: S608
    return [Point._make(row) for row in tuples(db, sql, [job_id, since_step, *values])]


class Ahead(NamedTuple):
    """What one who follows a job has yet to see, by step, and where that takes him; `more`: there may be more of it."""

    points: list[Point]
    step: int
    aside: float
    more: bool


def points_ahead(db: Database, job_id: str, *, step: int, aside: float, most: int) -> Ahead:
    """Return about `most` points behind a place; never a part of those of one step, or of one moment.

    The place is the newest of the job's own steps, and the time of the newest point of another phase: until the first
    own step, those come too, and before it. Of a job without such steps every phase's count as its own.
    """
    if not has_own_steps(db, job_id):
        found = _steps_ahead(db, job_id, "", step, most)
        return Ahead(found, max((point.step for point in found), default=step), aside, len(found) >= most)
    # These first: what another phase reported before the first of them is then seen below.
    own = _steps_ahead(db, job_id, f" AND {_OF_OWN}", step, most)
    beside = _moments_ahead(db, job_id, aside, most) if step < 0 else []
    if len(beside) >= most:
        own = []
    return Ahead(
        sorted((*beside, *own), key=lambda point: (point.step, point.phase)),
        max((point.step for point in own), default=step),
        max((point.ts for point in beside), default=aside),
        len(beside) >= most or len(own) >= most,
    )


def _steps_ahead(db: Database, job_id: str, where: str, step: int, most: int) -> list[Point]:
    rows = f"FROM metrics WHERE job_id = ?1 AND step > ?2{where}"
    end = f"coalesce((SELECT step {rows} ORDER BY step LIMIT 1 OFFSET ?3 - 1), {LAST_STEP})"
    sql = f"SELECT {_POINT_SQL} {rows} AND step <= {end} ORDER BY step, phase"
    return [Point._make(row) for row in tuples(db, sql, [job_id, step, most])]


def _moments_ahead(db: Database, job_id: str, ts: float, most: int) -> list[Point]:
    rows = f"FROM metrics WHERE job_id = ?1 AND ts > ?2 AND NOT {_OF_OWN}"
    end = f"coalesce((SELECT ts {rows} ORDER BY ts LIMIT 1 OFFSET ?3 - 1), 9e999)"
    sql = f"SELECT {_POINT_SQL} {rows} AND ts <= {end}"
    return [Point._make(row) for row in tuples(db, sql, [job_id, ts, most])]


def latest_step(db: Database, job_id: str) -> int:
    """Return the highest of the job's own steps with a point, of a job without such steps that of any; else -1."""
    where = f" AND {_OF_OWN}" if has_own_steps(db, job_id) else ""
    rows = tuples(db, f"SELECT step FROM metrics WHERE job_id = ?{where} ORDER BY step DESC LIMIT 1", [job_id])  # noqa: S608
    return int(rows[0][0]) if rows else -1


class Stretch(NamedTuple):
    """What a stretch of a phase's steps comes to: its points of the least and of the greatest loss.

    A loss that is no number is the greatest: it is what a curve must show.
    """

    least: Point
    greatest: Point


_LOSS = "coalesce(loss, 9e999)"
_WITHIN = (
    f"SELECT step FROM metrics WHERE job_id = :job AND phase = :phase AND step BETWEEN low AND high ORDER BY {_LOSS}"  # noqa: S608
)
# Stretch by stretch: grouping in one statement would sort every row, and takes three times as long (a million points).
_STRETCHES = f"""
WITH RECURSIVE starts (start) AS (
    SELECT :first - :first % :width UNION ALL SELECT start + :width FROM starts WHERE start + :width <= :last
), bounds AS (
    SELECT max(start, :first) AS low, min(start + :width - 1, :last) AS high FROM starts
), found AS MATERIALIZED (
    SELECT ({_WITHIN}, step LIMIT 1) AS least, ({_WITHIN} DESC, step LIMIT 1) AS greatest FROM bounds
)
SELECT {", ".join(f"a.{name}" for name in Point._fields)}, {", ".join(f"b.{name}" for name in Point._fields)} FROM found
CROSS JOIN metrics AS a ON a.job_id = :job AND a.phase = :phase AND a.step = least
CROSS JOIN metrics AS b ON b.job_id = :job AND b.phase = :phase AND b.step = greatest
"""  # noqa: S608


def stretches(db: Database, job_id: str, phase: str, *, first: int, last: int, width: int) -> list[Stretch]:
    """Return a phase from step `first` to `last` in stretches of `width` steps, in order, empty ones left out.

    They begin at multiples of `width`.
    """
    values = {"job": job_id, "phase": phase, "first": first, "last": last, "width": width}
    if width > 1:
        half = len(Point._fields)
        rows = named(db, _STRETCHES, values)
        found = [Stretch(Point._make(row[:half]), Point._make(row[half:])) for row in rows]
        return sorted(found, key=lambda one: one.least.step)
    del values["width"]
    sql = (
        f"SELECT {_POINT_SQL} FROM metrics "  # noqa: S608
        "WHERE job_id = :job AND phase = :phase AND step BETWEEN :first AND :last ORDER BY step"
    )
    return [Stretch(point, point) for point in map(Point._make, named(db, sql, values))]


def edge(db: Database, job_id: str, phase: str, *, first: int, last: int, newest: bool = False) -> Point | None:
    """Return a phase's oldest point from step `first` to `last`, or its newest; None where there is none."""
    order = "DESC" if newest else "ASC"
    sql = (
        f"SELECT {_POINT_SQL} FROM metrics WHERE job_id = ? AND phase = ? AND step BETWEEN ? AND ? "  # noqa: S608
        f"ORDER BY step {order} LIMIT 1"
    )
    rows = tuples(db, sql, [job_id, phase, first, last])
    return Point._make(rows[0]) if rows else None


def other_points(db: Database, job_id: str) -> list[Point]:
    """Return the points of the phases beside `OWN`, by step; it looks at every point of the job."""
    sql = f"SELECT {_POINT_SQL} FROM metrics WHERE job_id = ? AND NOT {_OF_OWN} ORDER BY step"  # noqa: S608
    return [Point._make(row) for row in tuples(db, sql, [job_id])]


def are_more(db: Database, job_id: str, *, than: int, since_step: int) -> bool:
    """Say whether `points` would return more than so many, of no phase in particular."""
    where = f" AND {_OF_OWN}" if since_step >= 0 and has_own_steps(db, job_id) else ""
    sql = f"SELECT count(*) FROM (SELECT 1 FROM metrics WHERE job_id = ? AND step > ?{where} LIMIT ?)"  # noqa: S608
    return bool(tuples(db, sql, [job_id, since_step, than + 1])[0][0] > than)


def fits(db: Database, job_id: str, phase: str, *, first: int, last: int, most: int) -> bool:
    """Say whether a phase has so many points or fewer from step `first` to `last`."""
    where = "job_id = ? AND phase = ? AND step BETWEEN ? AND ?"
    sql = f"SELECT count(*) FROM (SELECT 1 FROM metrics WHERE {where} LIMIT ?)"  # noqa: S608
    return bool(tuples(db, sql, [job_id, phase, first, last, max(most, 0) + 1])[0][0] <= most)


def has_own_steps(db: Database, job_id: str) -> bool:
    """Say whether a job makes optimiser steps: it is to make some, or has made one."""
    sql = (
        "SELECT EXISTS (SELECT 1 FROM jobs WHERE id = ?1 AND total_steps > 0) "  # noqa: S608
        f"OR EXISTS (SELECT 1 FROM metrics WHERE job_id = ?1 AND {_OF_OWN})"
    )
    return bool(tuples(db, sql, [job_id])[0][0])


def latest_points(db: Database, job_ids: Iterable[str]) -> dict[str, Point]:
    """Return the newest training point of each job that has one."""
    sql = (
        f"SELECT {_POINT_SQL} FROM metrics WHERE job_id = ? AND phase = 'train' "  # noqa: S608
        "ORDER BY step DESC LIMIT 1"
    )
    return {job_id: Point._make(row) for job_id in job_ids for row in tuples(db, sql, [job_id])}


def add_log_lines(
    db: Database, job_id: str, lines: Iterable[tuple[float, str, str]], *, fence: int | None = None
) -> int:
    """Append (ts, stream, text) lines and keep the newest 2,000. Returns the number of new ones."""
    if not fences.holds(db, job_id, fence):
        return 0
    ((newest,),) = tuples(db, "SELECT max(seq) FROM log_lines WHERE job_id = ?", [job_id])
    last = int(newest or 0)
    numbered = [(job_id, last + i, *line) for i, line in enumerate(lines, start=1)]
    db.conn.executemany("INSERT INTO log_lines (job_id, seq, ts, stream, text) VALUES (?, ?, ?, ?, ?)", numbered)
    oldest = last + len(numbered) - LOG_LINES_KEPT
    if oldest > 0:
        db.conn.execute("DELETE FROM log_lines WHERE job_id = ? AND seq <= ?", [job_id, oldest])
    return len(numbered)


def log_lines(db: Database, job_id: str, *, since: int = 0) -> list[LogLine]:
    """Return kept lines with a number above `since`, in order."""
    sql = "SELECT seq, ts, stream, text FROM log_lines WHERE job_id = ? AND seq > ? ORDER BY seq"
    return [LogLine(*row) for row in tuples(db, sql, [job_id, since])]


def set_result(db: Database, job_id: str, body: Mapping[str, Any], *, now: float, fence: int | None = None) -> int:
    """Store a job's result; a repeated report replaces it. Returns the number of rows."""
    if not fences.holds(db, job_id, fence):
        return 0
    insert(db, "results", {"job_id": job_id, "body": json.dumps(dict(body)), "created_at": now}, replace=True)
    return 1


def result(db: Database, job_id: str) -> dict[str, Any] | None:
    """Return a job's result, or None while there is none."""
    rows = tuples(db, "SELECT body FROM results WHERE job_id = ?", [job_id])
    return json.loads(rows[0][0]) if rows else None


def results(db: Database, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the result of each of these jobs that has one, by its id."""
    sql = "SELECT job_id, body FROM results WHERE job_id IN (SELECT value FROM json_each(?))"
    return {job_id: json.loads(body) for job_id, body in tuples(db, sql, [json.dumps(list(job_ids))])}


def add_checkpoint(db: Database, checkpoint: Checkpoint, *, fence: int | None = None) -> int:
    """Record a published checkpoint; one at the same step replaces the earlier record but keeps its id and its pin.

    Returns the number of rows.
    """
    if not fences.holds(db, checkpoint.job_id, fence):
        return 0
    key = [checkpoint.job_id, checkpoint.step]
    values = asdict(checkpoint)
    for row in tuples(db, "SELECT id, pinned FROM checkpoints WHERE job_id = ? AND step = ?", key):
        values["id"], values["pinned"] = row
    insert(db, "checkpoints", values, replace=True)
    return 1


def mark_checkpoint(db: Database, job_id: str, step: int, state: str, *, fence: int | None = None) -> int:
    """Set the state of a job's checkpoint at `step`. Returns the number of rows."""
    if not fences.holds(db, job_id, fence):
        return 0
    sql = "UPDATE checkpoints SET state = ? WHERE job_id = ? AND step = ?"
    return db.conn.execute(sql, [state, job_id, step]).rowcount


def newest_checkpoint_step(db: Database, job_id: str) -> int:
    """Return the step of the newest checkpoint that still stands, or 0."""
    sql = "SELECT max(step) FROM checkpoints WHERE job_id = ? AND state = 'published'"
    return int(tuples(db, sql, [job_id])[0][0] or 0)


def checkpoints(db: Database, job_id: str) -> list[Checkpoint]:
    """Return a job's checkpoints, oldest first."""
    rows = all_rows(db, "SELECT * FROM checkpoints WHERE job_id = ? ORDER BY step", [job_id])
    return [_checkpoint(row) for row in rows]


def _checkpoint(row: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(**{**row, "pinned": bool(row["pinned"])})


def checkpoint(db: Database, job_id: str, step: int) -> Checkpoint | None:
    """Return a job's checkpoint of one step, in whatever state it is."""
    return next((found for found in checkpoints(db, job_id) if found.step == step), None)


def find_checkpoint(db: Database, checkpoint_id: str) -> Checkpoint | None:
    """Return the checkpoint with this id, in whatever state it is."""
    rows = all_rows(db, "SELECT * FROM checkpoints WHERE id = ?", [checkpoint_id])
    return next((_checkpoint(row) for row in rows), None)


def starts(db: Database, job_ids: Iterable[str]) -> dict[str, tuple[str, str | None, int | None]]:
    """Return (checkpoint, its job, its step) for each of these jobs that started from a checkpoint; job and step are
    None where that job was deleted."""
    ids = list(job_ids)
    sql = (
        "SELECT jobs.id, jobs.checkpoint_id, checkpoints.job_id, checkpoints.step FROM jobs "  # noqa: S608
        "LEFT JOIN checkpoints ON checkpoints.id = jobs.checkpoint_id "
        f"WHERE jobs.checkpoint_id IS NOT NULL AND jobs.id IN ({', '.join('?' * len(ids))})"
    )
    return {row[0]: (row[1], row[2], row[3]) for row in tuples(db, sql, ids)}


def pin_checkpoint(db: Database, job_id: str, step: int, pinned: bool) -> None:
    """Note that a job's checkpoint is, or is not, to be kept for good."""
    db.conn.execute("UPDATE checkpoints SET pinned = ? WHERE job_id = ? AND step = ?", [int(pinned), job_id, step])
