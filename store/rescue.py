"""Saves what can still be read of a damaged store: python -m store.rescue STORE TARGET

The rule: the damaged file is only read. Each table is read from its first row and from its last until the damage is
met; what lies between is lost, and said. (sqlite3's `.recover` does more where it is built in, which it often is not.)
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from store import schema


@dataclass(frozen=True)
class Rescued:
    """What was saved of one table."""

    table: str
    rows: int
    whole: bool


def rescue(damaged: Path, target: Path) -> list[Rescued]:
    """Write what is readable of `damaged` to `target`, a new store of the same schema; return what that is.

    Raises FileExistsError where `target` is there; sqlite3.DatabaseError where the list of tables itself is lost.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    saved = []
    with closing(sqlite3.connect(f"file:{quote(str(damaged))}?mode=ro", uri=True)) as source:
        number = int(source.execute("PRAGMA user_version").fetchone()[0])
        with closing(sqlite3.connect(target)) as connection, connection:
            connection.executescript("".join(schema.MIGRATIONS[:number]) + f"PRAGMA user_version={number};")
            found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            tables = [name for (name,) in found if not name.startswith("sqlite_")]
            for table in tables:
                saved.append(_copy(source, connection, table))
            for table in tables:
                _drop_orphans(connection, table)
    return saved


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> Rescued:
    columns = [row[1] for row in target.execute(f"PRAGMA table_info({table})")]
    keys = [row[1] for row in target.execute(f"PRAGMA table_info({table})") if row[5]]
    back = ", ".join(f"{key} DESC" for key in keys)
    whole = False
    for order in ("", f" ORDER BY {back}"):
        rows = _until_damage(source, f"SELECT {', '.join(columns)} FROM {table}{order}")  # noqa: S608
        marks = ", ".join("?" * len(columns))
        for row in rows:
            whole = row is None
            if row is not None:
                target.execute(f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})", row)  # noqa: S608
        if whole:
            break
    count = target.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
    return Rescued(table, count, whole)


def _until_damage(source: sqlite3.Connection, sql: str) -> Iterator[tuple[Any, ...] | None]:
    """Return the rows up to the damage, and None after the last where none was met."""
    try:
        yield from source.execute(sql)
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return
    yield None


def _drop_orphans(connection: sqlite3.Connection, table: str) -> None:
    """Remove rows of jobs (or models) that were lost: a store holds none."""
    for reference in connection.execute(f"PRAGMA foreign_key_list({table})").fetchall():
        other, column, key = reference[2], reference[3], reference[4]
        connection.execute(f"DELETE FROM {table} WHERE {column} NOT IN (SELECT {key} FROM {other})")  # noqa: S608


def main() -> None:
    """Save a store, and say what was lost."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m store.rescue STORE TARGET")
    try:
        saved = rescue(Path(sys.argv[1]), Path(sys.argv[2]))
    except FileExistsError:
        sys.exit(f"{sys.argv[2]} is there already; name a file that is not.")
    except sqlite3.DatabaseError as error:
        sys.exit(f"Nothing can be read of {sys.argv[1]} ({error}). Take the newest backup.")
    for part in saved:
        lost = "" if part.whole else "; the rest is lost"
        print(f"{part.table}: {part.rows} rows{lost}", file=sys.stderr)


if __name__ == "__main__":
    main()
