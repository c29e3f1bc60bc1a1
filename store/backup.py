"""The copy of a store from before its tables were changed, and what to do with a damaged one.

The rule: no migration without a whole copy on the disk. It is made while the write lock is held, so that it is the
store as the migration found it; its name appears when its content is safe. (The store stands below `engine.atomic`,
which keeps this rule for all other files.)
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

from store.errors import StoreError, StoreFull

KEPT = 2
ROOM = 1.2  # of the store's size: the copy, and what the migration itself writes before it commits


def path_of(store: Path, schema: int) -> Path:
    """Return where the copy from before the migration to `schema` lies."""
    return store.with_name(f"{store.name}.before-schema-{schema}")


def listing(store: Path) -> list[Path]:
    """Return the copies of a store, newest first."""
    found = {path: path.suffix.rpartition("-")[2] for path in store.parent.glob(f"{store.name}.before-schema-*")}
    return sorted((path for path in found if found[path].isdigit()), key=lambda path: -int(found[path]))


def make(connection: sqlite3.Connection, store: Path, schema: int) -> Path:
    """Copy the store, which is about to be brought to `schema`; return where the copy lies.

    `connection` is one without a transaction of its own. Raises StoreFull, naming what is needed; StoreError.
    """
    _need_room(connection, store, schema)
    final = path_of(store, schema)
    staged = final.with_name(final.name + ".part")
    staged.unlink(missing_ok=True)  # of a process that died here
    try:
        # Made first and empty, for SQLite would follow the umask.
        os.close(os.open(staged, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection.execute("VACUUM INTO ?", [str(staged)])
        _sync(staged)
        staged.rename(final)
        _sync(store.parent)
    except OSError as error:
        staged.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"No disk space left to copy the job store {store}. Free some; nothing was changed."
            ) from None
        raise StoreError(f"The job store {store} could not be copied before a change of its tables: {error}") from None
    except StoreError:
        staged.unlink(missing_ok=True)
        raise
    for old in listing(store)[KEPT:]:
        with suppress(OSError):
            old.unlink()
    return final


def _need_room(connection: sqlite3.Connection, store: Path, schema: int) -> None:
    pages, free_pages, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    need = int((pages - free_pages) * size * ROOM)
    free = shutil.disk_usage(store.parent).free
    if free < need:
        raise StoreFull(
            f"The job store {store} is copied before its tables change (schema {schema}); that needs "
            f"{need / 1e6:.1f} MB and {free / 1e6:.1f} MB are free. Free some space; nothing was changed."
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remedy(store: Path) -> str:
    """Return what to do with a store that is damaged."""
    rescued = store.with_name("rescued.db")
    copies = listing(store)
    copy = f"The newest backup is {copies[0]}." if copies else "There is no backup beside it."
    command = shlex.join([sys.executable, "-m", "store.rescue", str(store), str(rescued)])
    return (
        f"{copy} Stop the supervisor and keep the damaged file, then save what can be read: {command} (or with "
        f"sqlite3's .recover, where it has that) and put {rescued.name} in its place."
    )
