"""Why a job waits, or why nothing is heard of it: said once in its history, and in its row as it stands now.

The rule: a hold begins with its cause and a colon; the history tells when a cause begins, not of each new wording.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from engine import resources
from engine.resources import Device, size_text
from store import Store, jobs
from store.attempts import Attempt
from store.jobs import Job

HOLD_SECONDS = 5.0  # between two looks at who is in a waiting run's way
RELEASE_SECONDS = 10.0  # a driver takes some seconds at most to give back what a killed process held
RELEASE_SLACK = 256 * 1024 * 1024  # what others may have taken meanwhile

log = logging.getLogger("fusion.holds")


class Holds:
    """Writes the holds of one store."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._said: dict[str, float] = {}
        self._unwritten: list[tuple[Job, str, str | None]] = []  # with the kind of event, where the cause is a new one

    def say(self, job: Job, cause: str, reason: Callable[[], str], *, kind: str = "hold") -> None:
        """Have a job's hold set by the next `write`; an event of `kind` tells of a cause that is not the one before."""
        now = self._clock()
        before = (job.hold or "").partition(":")[0]
        if before == cause and now - self._said.get(job.id, 0.0) < HOLD_SECONDS:
            return
        hold = f"{cause}: {reason()}"
        self._said[job.id] = now
        if hold == job.hold:
            return
        self._unwritten.append((job, hold, None if before == cause else kind))

    def write(self) -> None:
        """Write what was said, all in one transaction: a full disk or a taken card may hold a whole queue."""
        said, self._unwritten = self._unwritten, []
        if not said:
            return
        with self._store.write() as db:
            for job, hold, kind in said:
                # Cancelled, or deleted, since it was read: nothing waits any more.
                if jobs.set_hold(db, job, hold) and kind:
                    jobs.add_event(db, job.id, kind, {"why": hold}, now=self._clock())

    def clear(self) -> None:
        """Forget when holds were said: nothing waits."""
        self._said.clear()


class Releases:
    """Whether a card's memory came back after its worker's end: the next run there waits for it, some seconds long."""

    def __init__(
        self, store: Store, clock: Callable[[], float], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._before: dict[str, int] = {}  # bytes that were taken on a device when its worker started
        self._ended: dict[str, tuple[str, float]] = {}
        self._awaited: set[str] = set()

    def started(self, device: Device) -> None:
        """Note what is taken on a device just before a worker starts there."""
        if device.type == "cuda":
            self._before[device.name] = device.memory_used

    def ended(self, attempt: Attempt) -> None:
        """Note that the worker of a device is gone."""
        if attempt.device in self._before:
            self._ended[attempt.device] = (attempt.job_id, self._monotonic())

    def pending(self, device: Device) -> bool:
        """Say whether the memory of the last worker on `device` is still on its way back.

        After 10 s it is awaited no more: who holds it is told in the history of the run that ended.
        """
        if device.name not in self._ended:
            return False
        job_id, since = self._ended[device.name]
        kept = device.memory_used - self._before[device.name]
        waited = self._monotonic() - since
        if kept > RELEASE_SLACK and waited < RELEASE_SECONDS:
            self._awaited.add(device.name)
            return True
        del self._ended[device.name], self._before[device.name]
        # Where nobody waited, someone else may have taken it since.
        if device.name in self._awaited and kept > RELEASE_SLACK:
            self._tell(job_id, device, kept)
        self._awaited.discard(device.name)
        return False

    def _tell(self, job_id: str, device: Device, kept: int) -> None:
        holders: Sequence[resources.Holder] = resources.holders(device)
        who = f"held by {', '.join(map(str, holders))}" if holders else "what holds it cannot be seen"
        why = f"{size_text(kept)} of {device.label} did not come back in {RELEASE_SECONDS:.0f} s; {who}"
        log.warning("job %s: %s", job_id, why)
        with self._store.write() as db:
            if jobs.find(db, job_id):  # it may have been deleted
                jobs.add_event(db, job_id, "memory_kept", {"why": why}, now=self._clock())
