"""Failing or dying at call N of those that change files or the store, through the two seams of the code itself.

`atomic.step` sees every call on files, `db.step` every SQL statement; which of them N counts, is the test's choice.
"""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.conditions import eventually

Action = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def die(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Die before the call, as by signal 9."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Make the call, then die."""
    call(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)


def die_within(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Die half-way through a write, a library's saving or the removal of a tree; before any other call."""
    name = getattr(call, "__name__", "")
    if call is os.write:
        descriptor, data = arguments
        os.write(descriptor, bytes(data)[: len(data) // 2])
    elif name in ("save_file", "save_pretrained"):
        call(*arguments, **options)
        written = next(Path(argument) for argument in arguments if isinstance(argument, str | Path))
        for file in [written] if written.is_file() else [path for path in written.rglob("*") if path.is_file()]:
            os.truncate(file, file.stat().st_size // 2)
    elif name == "rmtree":
        for file in [path for path in Path(arguments[0]).rglob("*") if path.is_file()][::2]:
            file.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


def has_a_middle(call: Callable[..., Any]) -> bool:
    """Say whether dying within a call differs from dying before it."""
    return call is os.write or getattr(call, "__name__", "") in ("save_file", "save_pretrained", "rmtree")


def fail(number: int) -> Action:
    """Return an action that fails with this errno, of which a full disk's also fails SQL."""

    def failing(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if arguments and isinstance(arguments[0], str) and getattr(call, "__name__", "").startswith("execute"):
            raise sqlite3.OperationalError("database or disk is full")
        raise OSError(number, os.strerror(number))

    return failing


class Count:
    """Counts calls; at number `at` (from 1) it acts instead, once, or with `onward` from there on."""

    def __init__(self, at: int, action: Action, *, onward: bool = False) -> None:
        self.at = at
        self.action = action
        self.onward = onward
        self.seen: list[Callable[..., Any]] = []

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return len(self.seen)

    def __call__(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self.seen.append(call)
        if self.calls == self.at or (self.onward and 0 < self.at < self.calls):
            return self.action(call, arguments, options)
        return call(*arguments, **options)


@contextmanager
def at(number: int, action: Action, *, files: bool = True, sql: bool = False, onward: bool = False) -> Iterator[Count]:
    """Act at call `number` of those chosen, within this process; 0 only counts."""
    count = Count(number, action, onward=onward)
    with ExitStack() as patches:
        for seam in [*(["engine.atomic.step"] if files else []), *(["store.db.step"] if sql else [])]:
            patches.enter_context(mock.patch(seam, count))
        yield count


def forked(work: Callable[[], object], *, within: float = 60.0) -> int:
    """Do `work` in a fork of this process; return its exit code, or the signal it died by as a negative number."""
    return ended(fork(work), within=within)


def fork(work: Callable[[], object]) -> int:
    """Begin `work` in a fork of this process, whose exit code says whether it went well; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        gc.freeze()  # a collection would copy every page of what the fork shares
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  (an exception must not go on in a second pytest)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def ended(pid: int, *, within: float = 60.0) -> int:
    """Wait for the end of a fork; return its exit code, or the signal it died by as a negative number."""
    found = eventually(lambda: status if (status := os.waitpid(pid, os.WNOHANG))[0] else None, within=within)
    return os.waitstatus_to_exitcode(found[1])
