"""Opening the store, reading from it, and the one way to write to it.

The rule: every write is one short `BEGIN IMMEDIATE` transaction made by `Store.write()`; nothing else
in the project begins one. sqlite-utils nests savepoints inside it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from store import schema
from store.errors import StoreError, translate
from store.library import Database

BUSY_TIMEOUT_S = 10.0


def step(call: Callable[..., sqlite3.Cursor], sql: str, parameters: Any) -> sqlite3.Cursor:
    """Make one SQL statement: the seam at which the crash tests fail or die at statement N, for every N."""
    return call(sql, parameters)


def wal_is_safe(version: tuple[int, int, int]) -> bool:
    """Say whether this SQLite is free of the WAL-reset fault (fixed in 3.51.3, 3.50.7 and 3.44.6).

    Before these, two connections that write and checkpoint at once can corrupt a WAL database.
    """
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)


class _Connection(sqlite3.Connection):
    """A connection whose failures are store errors. (Being a class of ours, it can also be referred to weakly.)"""

    path: Path

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute one statement. Raises StoreError; IntegrityError as it is, for it tells of the caller."""
        with self._translated():
            return step(super().execute, sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        """Execute one statement for many rows. Raises as `execute` does."""
        with self._translated():
            return step(super().executemany, sql, parameters)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except sqlite3.DatabaseError as error:
            raise translate(error, self.path) from error


def first_row(db: Database, sql: str, values: Sequence[Any] = ()) -> dict[str, Any] | None:
    """Return the first row, with the statement finished: an open one would hold the read lock."""
    rows = list(db.query(sql, list(values)))
    return rows[0] if rows else None


class Store:
    """One store file. Threads may share it: each gets connections of its own."""

    def __init__(self, path: Path) -> None:
        """Open the store at `path`, making or migrating it where needed.

        Raises StoreReadOnly, StoreBusy or StoreError.
        """
        self.path = path
        self._local = threading.local()
        self._connections: weakref.WeakSet[sqlite3.Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        # Made here with private permissions: SQLite itself would follow the umask.
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise translate(sqlite3.OperationalError("unable to open"), path) from error
        mode = "WAL" if wal_is_safe(sqlite3.sqlite_version_info) else "DELETE"
        self._writer().execute(f"PRAGMA journal_mode={mode}")
        with self.write() as db:
            schema.migrate(db)

    def _connect(self) -> sqlite3.Connection:
        connection: _Connection = sqlite3.connect(
            self.path,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        connection.path = self.path
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
        with self._lock:
            self._connections.add(connection)
        return connection

    def _writer(self) -> Database:
        if not hasattr(self._local, "writer"):
            self._local.writer = Database(self._connect())
        writer: Database = self._local.writer
        return writer

    def read(self) -> Database:
        """Return this thread's read connection; it refuses to write."""
        if not hasattr(self._local, "reader"):
            connection = self._connect()
            connection.execute("PRAGMA query_only=ON")
            self._local.reader = Database(connection)
        reader: Database = self._local.reader
        return reader

    @contextmanager
    def write(self) -> Iterator[Database]:
        """Hold one IMMEDIATE transaction: all of it is committed, or on any error none of it."""
        db = self._writer()
        db.conn.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.conn.execute("COMMIT")
        except BaseException:
            if db.conn.in_transaction:
                db.conn.execute("ROLLBACK")
            raise

    def check(self) -> None:
        """Run SQLite's quick_check. Raises StoreError with its findings."""
        try:
            rows = [row[0] for row in self.read().execute("PRAGMA quick_check")]
        except sqlite3.DatabaseError as error:
            raise translate(error, self.path) from error
        if rows != ["ok"]:
            raise StoreError(f"The job store {self.path} is damaged: {'; '.join(rows[:3])}")

    def close(self) -> None:
        """Close every connection of every thread."""
        with self._lock:
            for connection in list(self._connections):
                connection.close()
        self._local = threading.local()
