"""Work in a child process that was forked from here: one that may die, or that is another user.

A child uses no connection that was opened before the fork.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# In memory where that is: what is asked is what a death of the process leaves, not of the machine.
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
NOBODY = 65534
CONTEXT = multiprocessing.get_context("fork")


def run(work: Callable[[], Any], *, stranger: bool = False) -> Any:
    """Return what `work` returns in a child, or raise what it raises there; None where the child was killed.

    A `stranger` is a user who owns nothing here: for a root that is nobody, any other user only loses nothing.
    """
    return _answer(*_start(work, stranger=stranger))


def at_once(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """Do all of `works`, each in a child, at the same time; return their answers, or raise the first error."""
    start = CONTEXT.Barrier(len(works))

    def waiting(work: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (start.wait(60), work())[1]

    children = [_start(waiting(work)) for work in works]
    return [_answer(*child) for child in children]


def _start(work: Callable[[], Any], *, stranger: bool = False) -> tuple[int, int]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(work, writer, stranger)
    os.close(writer)
    return child, reader


def _answer(child: int, reader: int) -> Any:
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    if not told:
        return None
    value, error = pickle.loads(told)
    if error is not None:
        raise error
    return value


def _work(work: Callable[[], Any], writer: int, stranger: bool) -> None:
    answer: tuple[Any, BaseException | None]
    try:
        if stranger and os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        answer = (work(), None)
    except BaseException as error:  # noqa: BLE001  (it is raised on the other side)
        traceback.print_exc()
        answer = (None, error)
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
    finally:
        os._exit(0)
