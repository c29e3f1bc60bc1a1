"""Waiting in tests: for a condition, with a limit, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    condition: Callable[[], T], *, within: float = 120.0, every: float = 0.01, what: str = "the condition"
) -> T:
    """Return the condition's first true value. Raises AssertionError when `within` seconds pass without.

    `every`: seconds between two looks, for those that start a process and so slow what they wait for.
    """
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not hold within {within} s")
        time.sleep(every)
    return value
