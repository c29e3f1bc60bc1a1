"""Stores that earlier versions made (see tools/make_fixture.py), unpacked for a test to open."""

from __future__ import annotations

import gzip
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parent / "fixtures"
SCHEMAS = sorted(int(folder.name.removeprefix("schema-")) for folder in FIXTURES.iterdir())
RUNNING = "job-3-running"

Rows = dict[str, list[dict[str, Any]]]


def unpack(schema: int, folder: Path) -> Path:
    """Put the store and the running job's journal of that schema into `folder`; return the store's path."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = FIXTURES / f"schema-{schema}"
    store = folder / "store.db"
    store.write_bytes(gzip.decompress((packed / "store.db.gz").read_bytes()))
    directory = folder / "runs" / RUNNING / "attempt-1"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "journal.jsonl").write_bytes(gzip.decompress((packed / "journal.jsonl.gz").read_bytes()))
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("UPDATE attempts SET directory = replace(directory, '/fixture', ?)", [str(folder)])
    return store


def rows(path: Path) -> Rows:
    """Return every row of every table, read without the code under test."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        return {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in names}


def version(path: Path) -> int:
    """Return the number of migrations that the file had."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def contains(now: Rows, before: Rows) -> bool:
    """Say whether every row of `before` is there, with every value that it had, and none beside."""
    return all(
        len(now[table]) == len(had)
        and all(old.items() <= new.items() for old, new in zip(had, now[table], strict=True))
        for table, had in before.items()
    )
