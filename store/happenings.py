"""What has happened of late, across all jobs, and how far it has been told to the user.

The rule: how far it was told is one row of the table `settings`. It moves in the transaction that puts the mark into
the job's own history, so that who comes after a crash neither tells it again nor leaves it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from store import jobs
from store.db import all_rows, first_row, insert
from store.jobs import Event, Job
from store.library import Database

PLACE = "notices"  # the row's key
LONG = "held_long"  # the kind of event that tells of a hold that lasts


@dataclass(frozen=True)
class Place:
    """How far was told: the id of the last event that was looked at, and when each cause was last told of."""

    seen: int
    told: Mapping[str, float] = field(default_factory=dict)


def place(db: Database) -> Place | None:
    """Return how far was told; None where nobody wanted to be told."""
    row = first_row(db, "SELECT value FROM settings WHERE key = ?", [PLACE])
    return Place(**json.loads(row["value"])) if row else None


def set_place(db: Database, at: Place) -> None:
    """Note how far was told."""
    value = json.dumps({"seen": at.seen, "told": dict(at.told)})
    insert(db, "settings", {"key": PLACE, "value": value}, replace=True)


def forget_place(db: Database) -> None:
    """Nobody wants to be told any more: who does later begins with what happens then."""
    db.conn.execute("DELETE FROM settings WHERE key = ?", [PLACE])


def newest(db: Database) -> int:
    """Return the id of the newest event of any job; 0 for none."""
    row = first_row(db, "SELECT max(id) AS id FROM events")
    return int(row["id"] or 0) if row else 0


def since(db: Database, after: int, kinds: Sequence[str], *, limit: int) -> list[tuple[str, Event]]:
    """Return the events of these kinds with an id above `after`, each with its job's id, oldest first."""
    marks = ", ".join("?" * len(kinds))
    sql = f"SELECT * FROM events WHERE id > ? AND kind IN ({marks}) ORDER BY id LIMIT ?"  # noqa: S608
    rows: list[dict[str, Any]] = all_rows(db, sql, [after, *kinds, limit])
    return [(row["job_id"], Event(row["id"], row["ts"], row["kind"], json.loads(row["payload"]))) for row in rows]


def held_first(db: Database) -> tuple[Job, float] | None:
    """Return the oldest queued job that is held, and since when; None where none is, or where this was told already.

    One that waits for another job's end is not meant: that is as its user wished.
    """
    row = first_row(
        db,
        "SELECT id FROM jobs WHERE state = 'queued' AND hold IS NOT NULL AND hold NOT LIKE ? ORDER BY seq LIMIT 1",
        [f"{jobs.AFTER}:%"],
    )
    if row is None:
        return None
    sql = "SELECT kind, ts FROM events WHERE job_id = ? AND kind IN ('hold', 'state', ?) ORDER BY id DESC LIMIT 1"
    begun = first_row(db, sql, [row["id"], LONG])
    return (jobs.get(db, row["id"]), float(begun["ts"])) if begun and begun["kind"] != LONG else None
