"""What workers report: metric points, log lines, results, checkpoints.

The rule: one metric row per (job, step, phase). A worker that resumes at step S replaces what was
recorded after S, so the stored curve is the one that led to the current weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from store.library import Database

LOG_LINES_KEPT = 2000


@dataclass(frozen=True)
class Point:
    """One telemetry point. `throughput` is non-padding tokens per second, `tokens` their running total,
    `vram_gb` the peak reserved memory, `step_s` seconds per optimiser step and `data_s` … `save_s` its parts."""

    step: int
    phase: str
    ts: float
    cycle: int = 0
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


_POINT_COLUMNS = tuple(Point.__dataclass_fields__)
_POINT_SQL = ", ".join(_POINT_COLUMNS)


def add_points(db: Database, job_id: str, fence: int, points: Iterable[Point]) -> None:
    """Insert or replace metric points."""
    columns = ("job_id", "fence", *_POINT_COLUMNS)
    marks = ", ".join("?" * len(columns))
    db.conn.executemany(
        f"INSERT OR REPLACE INTO metrics ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
        ([job_id, fence, *asdict(point).values()] for point in points),
    )


def forget_after(db: Database, job_id: str, step: int) -> None:
    """Drop the points after `step`: the worker resumed there and will write them again."""
    db.conn.execute("DELETE FROM metrics WHERE job_id = ? AND step > ?", [job_id, step])


def points(db: Database, job_id: str, *, since_step: int = -1, phase: str | None = None) -> list[Point]:
    """Return points with a step above `since_step`, by step, eval before train at the same step."""
    where, values = (" AND phase = ?", [phase]) if phase else ("", [])
    sql = f"SELECT {_POINT_SQL} FROM metrics WHERE job_id = ? AND step > ?{where} ORDER BY step, phase"  # noqa: S608
    rows = db.conn.execute(sql, [job_id, since_step, *values])
    return [Point(*row) for row in rows]


def latest_step(db: Database, job_id: str) -> int:
    """Return the highest step with a point, or -1."""
    row = db.conn.execute("SELECT max(step) FROM metrics WHERE job_id = ?", [job_id]).fetchone()
    return -1 if row[0] is None else int(row[0])


def latest_points(db: Database, job_ids: Iterable[str]) -> dict[str, Point]:
    """Return the newest training point of each job that has one."""
    sql = (
        f"SELECT {_POINT_SQL} FROM metrics WHERE job_id = ? AND phase = 'train' "  # noqa: S608
        "ORDER BY step DESC LIMIT 1"
    )
    found = ((job_id, db.conn.execute(sql, [job_id]).fetchone()) for job_id in job_ids)
    return {job_id: Point(*row) for job_id, row in found if row}


def add_log_lines(db: Database, job_id: str, lines: Iterable[tuple[float, str, str]]) -> None:
    """Append (ts, stream, text) lines and keep the newest 2,000."""
    row = db.conn.execute("SELECT max(seq) FROM log_lines WHERE job_id = ?", [job_id]).fetchone()
    last = int(row[0] or 0)
    numbered = [(job_id, last + i, *line) for i, line in enumerate(lines, start=1)]
    db.conn.executemany("INSERT INTO log_lines (job_id, seq, ts, stream, text) VALUES (?, ?, ?, ?, ?)", numbered)
    oldest = last + len(numbered) - LOG_LINES_KEPT
    if oldest > 0:
        db.conn.execute("DELETE FROM log_lines WHERE job_id = ? AND seq <= ?", [job_id, oldest])


def log_lines(db: Database, job_id: str, *, since: int = 0) -> list[LogLine]:
    """Return kept lines with a number above `since`, in order."""
    sql = "SELECT seq, ts, stream, text FROM log_lines WHERE job_id = ? AND seq > ? ORDER BY seq"
    return [LogLine(*row) for row in db.conn.execute(sql, [job_id, since])]


def set_result(db: Database, job_id: str, body: Mapping[str, Any], *, now: float) -> None:
    """Store a job's result; a repeated report replaces it."""
    db.table("results").upsert({"job_id": job_id, "body": json.dumps(dict(body)), "created_at": now}, pk="job_id")


def result(db: Database, job_id: str) -> dict[str, Any] | None:
    """Return a job's result, or None while there is none."""
    row = db.conn.execute("SELECT body FROM results WHERE job_id = ?", [job_id]).fetchone()
    return json.loads(row[0]) if row else None


def add_checkpoint(db: Database, checkpoint: Checkpoint) -> None:
    """Record a published checkpoint; one at the same step replaces the earlier record but keeps its id."""
    row = db.conn.execute(
        "SELECT id FROM checkpoints WHERE job_id = ? AND step = ?", [checkpoint.job_id, checkpoint.step]
    ).fetchone()
    values = asdict(checkpoint)
    if row:
        values["id"] = row[0]
    db.table("checkpoints").insert(values, replace=True)


def mark_checkpoint(db: Database, job_id: str, step: int, state: str) -> None:
    """Set the state of a job's checkpoint at `step`."""
    db.conn.execute("UPDATE checkpoints SET state = ? WHERE job_id = ? AND step = ?", [state, job_id, step])


def newest_checkpoint_step(db: Database, job_id: str) -> int:
    """Return the step of the newest checkpoint that still stands, or 0."""
    sql = "SELECT max(step) FROM checkpoints WHERE job_id = ? AND state = 'published'"
    return int(db.conn.execute(sql, [job_id]).fetchone()[0] or 0)


def checkpoints(db: Database, job_id: str) -> list[Checkpoint]:
    """Return a job's checkpoints, oldest first."""
    rows = db.query("SELECT * FROM checkpoints WHERE job_id = ? ORDER BY step", [job_id])
    return [Checkpoint(**(row | {"pinned": bool(row["pinned"])})) for row in rows]
