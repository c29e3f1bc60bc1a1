"""Files on their way into the catalogue: what is expected, what has come, what became of it.

The rule: `move` is the only function that changes a state, by compare-and-set on the states that may lead to it; a
version of a dataset that an upload is to become is taken from the moment it is told.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from store.db import all_rows, first_row, insert
from store.errors import NotFound
from store.library import Database

INITIALIZED = "initialized"
UPLOADING = "uploading"
UPLOADED = "uploaded"
CONVERTING = "converting"
VALIDATING = "validating"
READY = "ready"
FAILED = "failed"


@dataclass(frozen=True)
class Upload:
    """One file. `detail` says why it failed: `message`, and the `row` where that is known; `bytes` is its size.

    The last three fields are of a file whose dataset has its name and version already.
    """

    id: str
    filename: str
    content_type: str
    state: str
    bytes: int
    detail: dict[str, Any]
    created_at: float
    updated_at: float
    dataset_name: str | None = None
    dataset_version: int | None = None
    dataset_type: str | None = None


def _upload(row: Mapping[str, Any]) -> Upload:
    return Upload(**{**row, "detail": json.loads(row["detail"] or "{}")})


def add(
    db: Database,
    *,
    id: str,
    filename: str,
    content_type: str,
    now: float,
    dataset_name: str | None = None,
    dataset_type: str | None = None,
) -> Upload:
    """Expect a file; with `dataset_name`, the next version of that name is kept for it."""
    row = {"id": id, "filename": filename, "content_type": content_type, "state": INITIALIZED}
    version = newest_version(db, dataset_name) + 1 if dataset_name else None
    named = {"dataset_name": dataset_name, "dataset_version": version, "dataset_type": dataset_type}
    insert(db, "uploads", {**row, **named, "created_at": now, "updated_at": now})
    return get(db, id)


def newest_version(db: Database, name: str) -> int:
    """Return the highest version of this name of a dataset that is there or kept for an upload; 0 for none."""
    sql = (
        "SELECT max(version) AS newest FROM (SELECT version FROM datasets WHERE name = ? "
        "UNION ALL SELECT dataset_version FROM uploads WHERE dataset_name = ?)"
    )
    row = first_row(db, sql, [name, name])
    return int(row["newest"] or 0) if row else 0


def get(db: Database, upload_id: str) -> Upload:
    """Return the upload with this id. Raises NotFound."""
    row = first_row(db, "SELECT * FROM uploads WHERE id = ?", [upload_id])
    if row:
        return _upload(row)
    raise NotFound(f"No upload has the id {upload_id}.")


def move(db: Database, upload_id: str, *, before: Collection[str], to: str, now: float, **columns: Any) -> bool:
    """Bring an upload from one of the states `before` to the state `to`; also set `columns`, or clear the detail.

    Returns False, with nothing written, when it is in another state or not there.
    """
    columns["detail"] = json.dumps(columns["detail"]) if columns.get("detail") else ""
    assignments = "".join(f", {name} = ?" for name in columns)
    marks = ", ".join("?" * len(before))
    changed = db.conn.execute(
        f"UPDATE uploads SET state = ?, updated_at = ?{assignments} WHERE id = ? AND state IN ({marks})",  # noqa: S608
        [to, now, *columns.values(), upload_id, *before],
    ).rowcount
    return bool(changed)


def everything(db: Database) -> list[Upload]:
    """Return all uploads, newest first."""
    return [_upload(row) for row in all_rows(db, "SELECT * FROM uploads ORDER BY created_at DESC, id")]


def for_datasets(db: Database, names: Sequence[str] = ()) -> list[Upload]:
    """Return the uploads that are to become versions of a dataset and have not, newest version first.

    Where `names` are given, of these datasets alone.
    """
    some = f"AND dataset_name IN ({', '.join('?' * len(names))})" if names else ""
    sql = (
        f"SELECT * FROM uploads WHERE dataset_name IS NOT NULL AND state != ? {some} "  # noqa: S608
        "ORDER BY dataset_name, dataset_version DESC"
    )
    return [_upload(row) for row in all_rows(db, sql, [READY, *names])]


def remove(db: Database, upload_id: str) -> None:
    """Forget an upload."""
    db.conn.execute("DELETE FROM uploads WHERE id = ?", [upload_id])
