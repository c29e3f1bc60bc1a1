"""How often a key may ask for the same thing: a sliding window over the newest requests, in memory.

The rule: at any moment, the requests of one key that were let through in the last window are no more than the limit.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from fastapi import Depends, HTTPException, Request
from fastapi.params import Depends as Dependency

from engine.service import Key


class Window:
    """The times of the newest requests of each key, none older than `seconds`."""

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Let `limit` requests of a key through in any `seconds`."""
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._times: dict[str, deque[float]] = {}

    def wait(self, key: str) -> float:
        """Count a request of `key` and return 0, or the seconds until one will be let through, and count none."""
        with self._lock:
            now = self._clock()
            for known in list(self._times):
                times = self._times[known]
                while times and times[0] <= now - self._seconds:
                    times.popleft()
                if not times:
                    del self._times[known]
            times = self._times.setdefault(key, deque())
            if len(times) >= self._limit:
                return times[0] + self._seconds - now
            times.append(now)
            return 0.0


def at_most(limit: int, seconds: float) -> Dependency:
    """Return a dependency that answers 429, with the time to wait, to a key that asks more often."""
    window = Window(limit, seconds)

    async def check(request: Request) -> None:
        key: Key = request.state.key
        if wait := window.wait(key.id):
            detail = (
                f"The key '{key.name}' has sent {limit} such requests in the last {seconds:.0f} s. Try again later."
            )
            raise HTTPException(429, detail, {"Retry-After": str(math.ceil(wait))})

    dependency: Dependency = Depends(check)
    return dependency
