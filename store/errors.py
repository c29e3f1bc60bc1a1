"""What can go wrong with the store, in words a user can act on."""

from __future__ import annotations

import sqlite3
from pathlib import Path


class StoreError(Exception):
    """Any failure of the store."""


class StoreBusy(StoreError):
    """Another process held the write lock for longer than the busy timeout."""


class StoreFull(StoreError):
    """The disk has no room for the write; nothing was changed."""


class StoreReadOnly(StoreError):
    """The file or its folder cannot be written by this user."""


class StoreDamaged(StoreError):
    """The file's content is not that of a whole database."""


class NetworkFilesystem(StoreError):
    """The file lies on another machine's disk, where locks and flushes cannot be relied on."""


class NotFound(StoreError):
    """No row has this id."""


def damaged(path: object, findings: str) -> StoreDamaged:
    """Return the error for a damaged file, with the newest backup and the way to save what is readable."""
    from store import backup  # which raises what stands here

    return StoreDamaged(f"The job store {path} is damaged: {findings}. {backup.remedy(Path(str(path)))}")


def translate(error: sqlite3.Error, path: object) -> StoreError:
    """Return the store error that says what `error` means for the file at `path`, with the remedy."""
    text = str(error).lower()
    if text.startswith("could not decode"):  # and it goes on with what it could not: none of our words
        return damaged(path, "a text in it is none")
    if "locked" in text or "busy" in text:
        return StoreBusy(f"The job store {path} is busy. Try again in a moment.")
    if "full" in text:
        return StoreFull(f"No disk space left for the job store {path}. Free some space; nothing was changed.")
    if "malformed" in text or "not a database" in text or "corrupt" in text:
        return damaged(path, str(error))
    if "readonly" in text or "read-only" in text or "unable to open" in text:
        return StoreReadOnly(f"The job store {path} cannot be written. Check the folder's owner and permissions.")
    return StoreError(f"The job store {path} failed: {error}")
