"""Telling streams when there may be something new.

The rule: however many streams are open, one thread asks the store, and only while there are any; nothing that a stream
holds outlives it, and the server's stop ends every one at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from engine.service import Service

INTERVAL_S = 0.25

_log = logging.getLogger(__name__)


class Listener:
    """One stream's ear."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._heard = -1

    async def change(self, *, within: float) -> bool:
        """Wait for a commit since the last call, `within` seconds at most; the first call does not wait.

        Returns False when the server stops.
        """
        commits = self._commits
        if not commits.stopped and self._heard == commits.seen:
            try:
                await asyncio.wait_for(commits.next.wait(), within)
            except asyncio.TimeoutError:
                pass
        self._heard = commits.seen
        return not commits.stopped


class Commits:
    """The one who looks, for all streams of an application. It lives in the loop's thread, as its listeners do."""

    def __init__(self, service: Service) -> None:
        """Prepare; nothing runs until somebody listens."""
        self.stopped = False
        self.seen = 0
        self.listening = 0
        self._service = service
        self._next: asyncio.Event | None = None
        self._watch: asyncio.Task[None] | None = None
        # One thread and always the same: the version that the store tells is one connection's.
        self._thread = ThreadPoolExecutor(1, "commits")

    @property
    def next(self) -> asyncio.Event:
        """Set at the next commit. Made in the loop that waits for it."""
        if self._next is None:
            self._next = asyncio.Event()
        return self._next

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Give a stream its ear for as long as it lasts."""
        self.listening += 1
        if self._watch is None and not self.stopped:
            self._watch = asyncio.get_running_loop().create_task(self._look())
        try:
            yield Listener(self)
        finally:
            self.listening -= 1
            if not self.listening and self._watch is not None:
                self._watch.cancel()
                self._watch = None

    def stop(self) -> None:
        """End every stream, now and from now on."""
        self.stopped = True
        self._tell()
        self._thread.shutdown(wait=False)

    def _tell(self) -> None:
        self.seen += 1
        now, self._next = self.next, None
        now.set()

    async def _look(self) -> None:
        """Look until cancelled. The first look is told too: what was committed before it, nobody else would tell."""
        known: int | None = None
        while not self.stopped:
            version = await self._version()
            if version is not None and version != known:
                known = version
                self._tell()
            await asyncio.sleep(INTERVAL_S)

    async def _version(self) -> int | None:
        """Return the store's version; None where it cannot tell now."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._service.version)
        except Exception:  # noqa: BLE001  (whatever it was: the streams wait on this task)
            _log.debug("The store could not tell whether it changed.", exc_info=True)
            return None
