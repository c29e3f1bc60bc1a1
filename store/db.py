"""Opening the store, reading from it, and the one way to write to it.

The rule: every write is one short `BEGIN IMMEDIATE` transaction made by `Store.write()`; nothing else
in the project begins one. sqlite-utils nests savepoints inside it. A store that is opened read-only makes, changes and
migrates nothing.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from store import backup, filesystems, schema
from store.errors import NetworkFilesystem, StoreError, StoreReadOnly, damaged, translate
from store.library import Database

BUSY_TIMEOUT_S = 10.0
CLOSE_WAIT_S = 0.5


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

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Held while a statement runs: closed in the middle of one, SQLite would take the process with it.
        self.busy = threading.RLock()

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute one statement. Raises StoreError; what tells of the caller (IntegrityError, DataError) as it is."""
        with self._translated(), self.busy:
            return step(super().execute, sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        """Execute one statement for many rows. Raises as `execute` does."""
        with self._translated(), self.busy:
            return step(super().executemany, sql, parameters)

    def fetch(self, sql: str, parameters: Any = ()) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return the columns and all rows of a query: damage is met by fetching, and may lie far from the first row."""
        with self._translated(), self.busy:
            cursor = self.execute(sql, parameters)
            return [column[0] for column in cursor.description or ()], cursor.fetchall()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError):
            raise
        except sqlite3.DatabaseError as error:
            raise translate(error, self.path) from error


def all_rows(db: Database, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Return every row, with the statement finished: an open one would hold the read lock. Raises StoreDamaged.

    Not by sqlite-utils' `query`, whose savepoint holds that lock for good where its release fails.
    """
    names, rows = _fetch(db, sql, values)
    return [dict(zip(names, row, strict=True)) for row in rows]


def tuples(db: Database, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Return every row as a tuple, as `all_rows` does: faster where there are thousands. Raises StoreDamaged."""
    return _fetch(db, sql, values)[1]


def named(db: Database, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return every row as a tuple, as `tuples` does, of a statement whose parameters have names."""
    return cast(_Connection, db.conn).fetch(sql, dict(values))[1]


def _fetch(db: Database, sql: str, values: Sequence[Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
    return cast(_Connection, db.conn).fetch(sql, list(values))


@contextmanager
def savepoint(db: Database) -> Iterator[None]:
    """Take back what was written within where it cannot be held, and leave the rest of the transaction.

    Not where the store itself fails: then all of the transaction goes, and SQLite may have ended it already.
    """
    db.conn.execute("SAVEPOINT part")
    try:
        yield
    except StoreError:
        raise
    except Exception:
        db.conn.execute("ROLLBACK TO part")
        db.conn.execute("RELEASE part")
        raise
    db.conn.execute("RELEASE part")


def first_row(db: Database, sql: str, values: Sequence[Any] = ()) -> dict[str, Any] | None:
    """Return the first row, if there is any."""
    rows = all_rows(db, sql, values)
    return rows[0] if rows else None


def insert(db: Database, table: str, values: Mapping[str, Any], *, replace: bool = False) -> None:
    """Add a row; with `replace`, in place of one with the same key.

    One statement: sqlite-utils makes six of an insert, and a table of its own before its first upsert.
    """
    verb = "INSERT OR REPLACE" if replace else "INSERT"
    marks = ", ".join("?" * len(values))
    sql = f"{verb} INTO {table} ({', '.join(values)}) VALUES ({marks})"
    db.conn.execute(sql, list(values.values()))


def need_local(path: Path) -> None:
    """Raise NetworkFilesystem where `path` lies on another machine's disk."""
    mount = filesystems.mount_of(path)
    if mount and mount.is_network:
        raise NetworkFilesystem(
            f"The job store {path} lies on a network file system ({mount.kind}, mounted at {mount.point}), where "
            "file locks and flushes cannot be relied on. Set FUSION_HOME to a folder on a disk of this machine; "
            "to look at this one and change nothing, set FUSION_READ_ONLY=1."
        )


class Store:
    """One store file. Threads may share it: each gets connections of its own."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the store at `path`, making or migrating it where needed; `read_only` does neither.

        Raises StoreReadOnly, StoreBusy, StoreFull, NetworkFilesystem, StoreDamaged or StoreError.
        """
        self.path = path
        self.read_only = read_only
        self._local = threading.local()
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        try:
            if read_only:
                self._look()
            else:
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        need_local(self.path)
        # Made here with private permissions: SQLite itself would follow the umask.
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise translate(sqlite3.OperationalError("unable to open"), self.path) from error
        mode = "WAL" if wal_is_safe(sqlite3.sqlite_version_info) else "DELETE"
        self._writer().execute(f"PRAGMA journal_mode={mode}")
        with self.write() as db:
            if 0 < schema.applied(db) < len(schema.MIGRATIONS):
                # On a connection of its own: none can copy within its transaction, nor with query_only.
                with closing(self._connect()) as connection:
                    backup.make(connection, self.path, len(schema.MIGRATIONS))
            schema.migrate(db)

    def _look(self) -> None:
        if not os.path.exists(self.path):
            raise StoreReadOnly(f"There is no job store {self.path} to read. Check FUSION_HOME and FUSION_READ_ONLY.")
        try:
            number = schema.applied(self.read())
        except StoreReadOnly as error:
            cut = os.path.exists(f"{self.path}-journal") or os.path.exists(self._log)
            remedy = (
                "a write to it was cut short, which is made good only where it can be written: open it there once"
                if cut
                else "ask its owner for the right to read the file and its folder"
            )
            raise StoreReadOnly(f"The job store {self.path} cannot be read: {remedy}.") from error
        if number < len(schema.MIGRATIONS):
            raise StoreReadOnly(
                f"The job store {self.path} was made by an earlier version (schema {number}, this one reads "
                f"{len(schema.MIGRATIONS)}) and cannot be brought up to date while it is opened read-only. Open it "
                "once where it can be written, or copy its folder to a local disk and point FUSION_HOME there."
            )

    def _frozen(self) -> bool:
        """Say whether SQLite must be told that the file does not change, or it could not read it.

        That is so for a WAL store in a folder that cannot be written: the index of its log cannot be made. It is true
        as long as there is no log; a log is somebody's who writes.
        """
        if os.access(self.path.parent, os.W_OK) or os.path.exists(self._log):
            return False
        with self.path.open("rb") as file:
            return file.read(20)[18:20] == b"\2\2"

    @property
    def _log(self) -> str:
        return f"{self.path}-wal"

    def _address(self) -> str:
        options = ("mode=ro&immutable=1" if self._frozen() else "mode=ro") if self.read_only else "mode=rw"
        return f"file:{quote(str(self.path))}?{options}"

    def _connect(self) -> sqlite3.Connection:
        try:
            address = self._address()
            connection: _Connection = sqlite3.connect(
                address,
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                factory=_Connection,
            )
        except (OSError, sqlite3.OperationalError) as error:
            raise translate(sqlite3.OperationalError("unable to open"), self.path) from error
        connection.path = self.path
        with self._lock:
            self._connections.add(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
        self._local.frozen = "immutable" in address
        return connection

    def _writer(self) -> Database:
        if not hasattr(self._local, "writer"):
            self._local.writer = Database(self._connect())
        writer: Database = self._local.writer
        return writer

    def read(self) -> Database:
        """Return this thread's read connection; it refuses to write."""
        if getattr(self._local, "frozen", False) and os.path.exists(self._log):
            del self._local.reader  # somebody writes after all
        if not hasattr(self._local, "reader"):
            connection = self._connect()
            connection.execute("PRAGMA query_only=ON")
            self._local.reader = Database(connection)
        reader: Database = self._local.reader
        return reader

    def need_writable(self) -> None:
        """Raise StoreReadOnly for a store that is opened so."""
        if self.read_only:
            raise StoreReadOnly(
                f"The job store {self.path} is opened read-only: FUSION_READ_ONLY is set, or its folder cannot be "
                "written by this user. Point FUSION_HOME at a folder of your own to change anything."
            )

    @contextmanager
    def write(self) -> Iterator[Database]:
        """Hold one IMMEDIATE transaction: all of it is committed, or on any error none of it.

        Raises StoreReadOnly for a store that is opened so; StoreBusy, StoreFull, StoreError.
        """
        self.need_writable()
        db = self._writer()
        db.conn.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.conn.execute("COMMIT")
        except BaseException:
            self._undo(db)
            raise

    def _undo(self, db: Database) -> None:
        """Take a transaction back. Where that fails too, its connection goes, and the transaction with it."""
        try:
            if db.conn.in_transaction:
                db.conn.execute("ROLLBACK")
        except StoreError:
            db.conn.close()
            del self._local.writer

    def check(self) -> None:
        """Run SQLite's quick_check. Raises StoreDamaged with its findings, the newest backup and the remedy."""
        try:
            rows = [row[0] for row in tuples(self.read(), "PRAGMA quick_check")]
        except sqlite3.DatabaseError as error:
            raise translate(error, self.path) from error
        if rows != ["ok"]:
            raise damaged(self.path, "; ".join(" ".join(row.split()) for row in rows[:3]))

    def close(self) -> None:
        """Close every connection of every thread; one on which a statement runs on and on is left to its thread."""
        with self._lock:
            for connection in list(self._connections):
                if connection.busy.acquire(timeout=CLOSE_WAIT_S):
                    connection.close()
                    connection.busy.release()
        self._local = threading.local()
