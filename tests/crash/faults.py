"""Failing or dying at call N of those that change files or the store, through the two seams of the code itself.

`atomic.step` sees every call on files, `db.step` every SQL statement; which of them N counts, is the test's choice.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

Action = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def die(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Die before the call, as by signal 9."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Make the call, then die."""
    call(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)


def die_within(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Die half-way through a write; before any other call."""
    if call is os.write:
        descriptor, data = arguments
        os.write(descriptor, bytes(data)[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> Action:
    """Return an action that fails with this errno, of which a full disk's also fails SQL."""

    def failing(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if arguments and isinstance(arguments[0], str) and getattr(call, "__name__", "").startswith("execute"):
            raise sqlite3.OperationalError("database or disk is full")
        raise OSError(number, os.strerror(number))

    return failing


class Count:
    """Counts calls; at number `at` (from 1) it acts instead, once."""

    def __init__(self, at: int, action: Action) -> None:
        self.at = at
        self.action = action
        self.calls = 0

    def __call__(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            return self.action(call, arguments, options)
        return call(*arguments, **options)


@contextmanager
def at(number: int, action: Action, *, files: bool = True, sql: bool = False) -> Iterator[Count]:
    """Act at call `number` of those chosen, within this process; 0 only counts."""
    count = Count(number, action)
    with ExitStack() as patches:
        for seam in [*(["engine.atomic.step"] if files else []), *(["store.db.step"] if sql else [])]:
            patches.enter_context(mock.patch(seam, count))
        yield count
