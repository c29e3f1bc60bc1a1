"""A finding, and the machine that is looked at.

The rule: a check looks and changes nothing. It makes no folder, migrates no store, and holds no lock that anybody waits
for.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from engine import resources
from engine.paths import Home
from engine.resources import Device
from engine.settings import Settings
from store import Store, schema
from store.library import Database

Level: TypeAlias = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was seen of it, and what to do about it where that is needed."""

    name: str
    level: Level
    seen: str
    remedy: str = ""


class Unread(Exception):
    """The store could not be read, which a finding of its own tells; what depends on it is not looked at."""


def user_name() -> str:
    """Return the name of the user that this process runs as."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # a container's user without a name


class _Untouched(Store):
    """The store opened so that not even the index of its log is made beside it."""

    def __init__(self, path: Path, *, any_version: bool = False) -> None:
        self._any_version = any_version
        super().__init__(path, read_only=True)

    def _look(self) -> None:
        if not self._any_version:
            super()._look()

    def _frozen(self) -> bool:
        # Without a log everything stands in the file itself; once somebody writes there is one, and it is read, too.
        # A journal of the other mode has to be seen: so only where the file says that it has a log.
        if os.path.exists(self._log):
            return False
        with self.path.open("rb") as file:
            return file.read(20)[18:20] == b"\2\2"


@dataclass
class Machine:
    """What the checks look at. `root` is where /etc, /var, /run and /proc are looked for; `tell` hears of long work,
    `stopped` is asked whether to look no further."""

    home: Home
    settings: Settings = field(default_factory=Settings)
    settings_error: str = ""
    root: Path = Path("/")
    user: str = field(default_factory=user_name)
    free_bytes: Callable[[Path], int] = resources.free_bytes
    devices: Callable[[], Sequence[Device]] = resources.devices
    clock: Callable[[], float] = time.time
    tell: Callable[[str], object] = lambda _: None
    stopped: Callable[[], bool] = lambda: False
    training_seconds: float = 120.0  # that the training interpreter may take to answer
    _unread: bool = False

    def leave_store(self) -> None:
        """Have no later check wait for a store that could not be read."""
        self._unread = True

    @contextmanager
    def store(self) -> Iterator[Database | None]:
        """Open the store to read it, None where there is none yet. Raises StoreError; Unread once that is told."""
        if not self.home.store.exists():
            yield None
            return
        if self._unread:
            raise Unread
        opened = _Untouched(self.home.store)
        try:
            yield opened.read()
        finally:
            opened.close()

    def store_version(self) -> int:
        """Return how many migrations the store has had, whatever their number. Raises StoreError.

        Asked of SQLite: the number in the file's header is an old one while a newer stands in the log.
        """
        opened = _Untouched(self.home.store, any_version=True)
        try:
            return schema.applied(opened.read())
        finally:
            opened.close()
