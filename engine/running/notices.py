"""Notices of what happened to runs: that one finished, failed, or needs somebody's attention.

The rule: what is told is read from the histories of the jobs, and the mark that it was told stands there before the
first try. So nothing is told twice, whoever dies, and a supervisor finds what the one before it left untold.

| event     | cause     | when                                                             |
|-----------|-----------|------------------------------------------------------------------|
| finished  | completed | a run is completed                                               |
| failed    | failed    | a run fails                                                      |
| attention | stalled   | nothing is heard of a worker, or it was ended for that           |
|           | diverged  | the loss was no number, and the run went back to a checkpoint    |
|           | disk_full | a run waits for room on the disk; told once an hour              |
|           | held      | the first of the queue is held for half an hour; once an hour    |
|           | limit     | a run passed max_hours or max_usd, and is stopped                |
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.running import recover
from engine.running.limits import LIMIT
from engine.running.outlets import Command, Notice, Way, Webhook, one_line
from engine.running.stalls import STALLED
from engine.settings import Settings
from store import NotFound, Store, StoreError, happenings, jobs, states
from store.happenings import LONG, Place
from store.jobs import Event, Job

LOOK_SECONDS = 1.0
HELD_LOOK_SECONDS = 30.0
HELD_SECONDS = 1800.0
AGAIN_SECONDS = 3600.0  # between two notices of what stands in the way of the whole queue
LEAVE_SECONDS = 3.0  # for what is under way when the supervisor leaves
AT_MOST = 500  # events read at once
MESSAGE_AT_MOST = 1000  # characters

FINISHED, FAILED, ATTENTION = "finished", "failed", "attention"
HELD, DIVERGED = "held", "diverged"
_OF_ALL = {recover.DISK_FULL, HELD}  # causes that are not one run's
_KINDS = ("state", "hold", "rollback", STALLED, LIMIT, LONG)

log = logging.getLogger("fusion.notices")


class Notices:
    """Tells of the jobs of one store, in a thread of its own: no command and no server keeps the supervisor."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        root: Path,
        *,
        clock: Callable[[], float] = time.time,
        look_seconds: float = LOOK_SECONDS,
        ways: Sequence[Way] | None = None,
    ) -> None:
        """`root` is the data folder, where the command runs; `ways` stand for those of the settings."""
        self._store = store
        self._wanted = settings.notify_on
        self._clock = clock
        self._look_seconds = look_seconds
        self._leave = threading.Event()
        self._turn = threading.Lock()  # a thread that a command keeps may outlast its leave
        self._ways = list(_ways(settings, root, self._leave.wait) if ways is None else ways)
        self._place: Place | None = None
        self._kept: Place | None = None  # as it stands in the store
        self._held_looked = float("-inf")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Tell of what happens within; what is under way at the end has some seconds left."""
        if not self._ways:
            self._want_none()
            yield
            return
        self._leave.clear()
        thread = threading.Thread(target=self._work, name="notices", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._leave.set()
            thread.join(LEAVE_SECONDS)

    def _want_none(self) -> None:
        """Forget the place, or all that happens from now on would be told once notices are wanted again."""
        try:
            if happenings.place(self._store.read()):
                with self._store.write() as db:
                    happenings.forget_place(db)
        except StoreError as error:
            log.warning("How far notices were sent could not be forgotten: %s", error)

    def _work(self) -> None:
        said = ""
        while True:
            try:
                with self._turn:
                    self.look()
                said = ""
            except Exception as error:
                if repr(error) != said:  # once, as it may last
                    known = isinstance(error, StoreError)
                    log.warning("Notices wait, the next round tries again: %s", error, exc_info=not known)
                said = repr(error)
            if self._leave.wait(self._look_seconds):
                return

    def look(self) -> None:
        """Tell of everything that has happened since the last look. Raises StoreError."""
        place = self._place = self._place or self._begin()
        self._look_for_held()
        db = self._store.read()
        newest = happenings.newest(db)
        found = happenings.since(db, place.seen, _KINDS, limit=AT_MOST) if newest > place.seen else []
        for job_id, event in found:
            if self._leave.is_set():
                return
            self._tell(job_id, event)
        if found and self._place != self._kept:
            self._keep_place()
        if len(found) < AT_MOST:
            self._place = replace(self._place, seen=max(newest, self._place.seen))

    def _begin(self) -> Place:
        """Go on where the supervisor before left off; where there was none that told, with what happens from now on."""
        with self._store.write() as db:
            place = happenings.place(db)
            if place is None:
                place = Place(happenings.newest(db))
                happenings.set_place(db, place)
        return place

    def _keep_place(self) -> None:
        """Keep how far was looked, so that what was passed over stays so under other settings."""
        assert self._place is not None
        with self._store.write() as db:
            happenings.set_place(db, self._place)
        self._kept = self._place

    def _look_for_held(self) -> None:
        """Put into the history of the first job in the queue that it has been held for long."""
        now = self._clock()
        if 0 <= now - self._held_looked < HELD_LOOK_SECONDS:
            return
        self._held_looked = now
        held = happenings.held_first(self._store.read())
        if held is None or now - held[1] < HELD_SECONDS:
            return
        job, minutes = held[0], int((now - held[1]) / 60)
        with self._store.write() as db:
            if jobs.set_hold(db, job, job.hold or ""):  # it is still the one that was read
                jobs.add_event(db, job.id, LONG, {"why": f"held for {minutes} min; {job.hold}"}, now=now)

    def _tell(self, job_id: str, event: Event) -> None:
        place = self._place
        assert place is not None
        self._place = place = replace(place, seen=event.id)
        notice = self._notice(job_id, event)
        if notice is None:
            return
        if notice.cause in _OF_ALL:
            if abs(event.ts - place.told.get(notice.cause, float("-inf"))) < AGAIN_SECONDS:
                return
            self._place = place = replace(place, told={**place.told, notice.cause: event.ts})
        by = ", ".join(way.name for way in self._ways)
        about = {"event": notice.event, "cause": notice.cause, "by": by, "about": event.id}
        try:
            with self._store.write() as db:
                happenings.set_place(db, place)
                if jobs.name_of(db, job_id) is not None:  # it may have been deleted
                    jobs.add_event(db, job_id, "notice", about, now=self._clock())
            self._kept = place
        except StoreError as error:
            # A full disk is itself a thing to tell of: twice is better than never.
            log.warning("job %s: that a notice is sent could not be written down: %s", job_id, error)
        for way in self._ways:
            if why := way.send(notice):
                self._note_failure(notice, way, why)

    def _note_failure(self, notice: Notice, way: Way, why: str) -> None:
        """Say that a notice did not get out; of the run it changes nothing."""
        log.warning("job %s: the notice by %s failed: %s", notice.job.id, way.name, why)
        try:
            with self._store.write() as db:
                if jobs.name_of(db, notice.job.id) is not None:
                    told = {"event": notice.event, "by": way.name, "why": why}
                    jobs.add_event(db, notice.job.id, "notice_failed", told, now=self._clock())
        except StoreError as error:
            log.warning("job %s: that could not be written down: %s", notice.job.id, error)

    def _notice(self, job_id: str, event: Event) -> Notice | None:
        """Return what is to be told of an event; None where nothing is."""
        meant = _meaning(event)
        if meant is None or meant[0] not in self._wanted:
            return None
        try:
            job = jobs.get(self._store.read(), job_id)
        except NotFound:
            return None
        kind, cause, words = meant
        message = one_line(f"{kind}: {one_line(job.name)}{_facts(job) if kind == FINISHED else f': {words}'}")
        return Notice(f"{job.id}:{event.id}", kind, cause, message[:MESSAGE_AT_MOST], event.ts, job)


def _ways(settings: Settings, root: Path, wait: Callable[[float], bool]) -> Iterator[Way]:
    if settings.notify_command:
        yield Command(settings.notify_command, root)
    if settings.notify_webhook:
        yield Webhook(settings.notify_webhook, wait)


def _meaning(event: Event) -> tuple[str, str, str] | None:
    """Return what an event is to the user: finished, failed or attention, the cause, and words for it."""
    what: Mapping[str, Any] = event.payload
    why = str(what.get("why", ""))
    if event.kind == "state":
        return _end(what, why)
    if event.kind == "hold":
        return (ATTENTION, recover.DISK_FULL, why) if why.startswith(f"{recover.DISK_FULL}:") else None
    if event.kind == "rollback":
        if "of" in what:  # of the ungrown model that is trained for comparison
            return None
        words = f"the loss was no number; back to step {what.get('step')} with a lower learning rate"
        return ATTENTION, DIVERGED, words
    return ATTENTION, HELD if event.kind == LONG else event.kind, why.removeprefix(f"{STALLED}: ")


def _end(what: Mapping[str, Any], why: str) -> tuple[str, str, str] | None:
    if what.get("to") == states.COMPLETED:
        return FINISHED, states.COMPLETED, ""
    if what.get("to") == states.FAILED:
        return FAILED, states.FAILED, str(what.get("error") or "its history says why")
    if what.get("to") == states.PREEMPTED and why == recover.DISK_FULL:
        return ATTENTION, recover.DISK_FULL, "no room on the disk; it goes on when there is"
    return None


def _facts(job: Job) -> str:
    """Return how much a completed run did, and in what time since it began."""
    steps = f", {job.step} steps" if job.total_steps else ""
    if job.started_at is None or job.finished_at is None:
        return steps
    return f"{steps}, {max(0.0, job.finished_at - job.started_at) / 60:.0f} min"
