"""Long work in the background, one piece after another.

The rule: there is one thread, which the first piece starts; whoever closes it waits for a moment and not for the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

CLOSE_WAIT_S = 5.0

Task = Callable[[], None]


class Stopped(Exception):
    """Raised within a piece of work, where it asks whether to go on."""


class Turns:
    """A thread that does what is added, in its order."""

    def __init__(self, name: str) -> None:
        """Name the thread; it is not started yet."""
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._closing = threading.Event()

    def add(self, task: Task) -> None:
        """Do `task`, which raises nothing, after those that were added before."""
        self._tasks.put(task)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

    def go_on(self, what: str = "", share: float | None = None) -> None:
        """Be asked by a task, as its `Progress`, whether to go on. Raises Stopped where not."""
        if self._closing.is_set():
            raise Stopped

    def close(self) -> None:
        """Have what is under way stop when it next asks, and what waits when it begins; wait some seconds for that."""
        self._closing.set()
        if self._thread:
            self._tasks.put(None)
            self._thread.join(CLOSE_WAIT_S)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
