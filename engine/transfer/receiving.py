"""A file that is being sent here: written piece by piece, and there whole or not at all.

The rule: who works on an upload holds its lock, which ends with the process; so a state that says that somebody is at
work is true while the lock is held, and else what a crash left.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from engine import atomic

LOCK, PART = "lock", "part"  # beside the file itself, which has a suffix
# `is_held` has the lock for a moment.
TRIES, BETWEEN_TRIES_S = 5, 0.005
Done = TypeVar("Done")


class Hold:
    """The lock of one upload's folder. Make one with `take`."""

    def __init__(self, descriptor: int) -> None:
        """Own the descriptor of a locked file."""
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path) -> Hold | None:
        """Return the lock of a folder that is there; None while another thread or process has it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = atomic.step(os.open, folder / LOCK, flags, 0o600)
        for _ in range(TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return cls(descriptor)
            time.sleep(BETWEEN_TRIES_S)
        os.close(descriptor)
        return None

    def release(self) -> None:
        """Let go of it; harmless when done already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_held(folder: Path) -> bool:
    """Say whether somebody works on the upload in `folder`."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


class Reception:
    """One file coming in, as pieces given to `write`; then `finish`, or `abort`, after which nothing of it is left."""

    def __init__(self, hold: Hold, file: Path, *, done: Callable[[int], Done], undone: Callable[[], None]) -> None:
        """Write to the folder that `hold` locks; `done` (given the size) and `undone` tell the store how it ended."""
        self._hold = hold
        self._file = file
        self._part = file.with_name(PART)
        self._done, self._undone = done, undone
        self._size = 0
        self._told = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = atomic.step(os.open, self._part, flags, 0o600)

    def write(self, data: bytes) -> None:
        """Take the next piece. Raises NoSpace, DiskFailed."""
        with atomic.telling(f"receiving {self._file.name}", self._file.parent):
            atomic.write_all(self._descriptor, data)
        self._size += len(data)

    def finish(self) -> None:
        """Make the file appear under its name, durably, and say so. Raises NoSpace, DiskFailed, StoreError."""
        with atomic.telling(f"receiving {self._file.name}", self._file.parent):
            atomic.sync(self._descriptor)
            self._close()
            atomic.step(os.replace, self._part, self._file)
            atomic.sync_path(self._file.parent)
        self._done(self._size)
        self._told = True
        self._hold.release()

    def abort(self) -> None:
        """Leave nothing of it. Harmless after `finish`."""
        self._close()
        if self._told:
            return
        atomic.discard(self._part)
        atomic.discard(self._file)
        with suppress(Exception):  # that it is broken off can be seen by the lock, too
            self._undone()
        self._hold.release()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
