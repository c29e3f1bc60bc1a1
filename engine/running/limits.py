"""Limits for runs that nobody watches: hours on a device, and what these cost.

The rule: only time in which a worker worked counts, over all workers of a run since it was submitted or last retried;
neither a queue, nor a machine that slept, nor a clock that was set uses any of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.jobs import control
from engine.settings import Settings
from store import Store, attempts, jobs, states
from store.attempts import Attempt
from store.jobs import Job
from store.library import Database

LIMIT = "limit"  # the kind of event that tells of it
# Of a run that publishes its model, stopping would save nothing.
_STOPPED_IN = states.ACTIVE - {states.UPLOADING}

log = logging.getLogger("fusion.limits")


@dataclass(frozen=True)
class _Seen:
    """What a run had worked when its present worker was first looked at, in seconds, and when that was."""

    worked: float
    at: float


class Limits:
    """Stops the runs of one store that have had enough."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._hours = settings.max_hours
        self._usd = settings.max_usd
        self._rate = settings.usd_per_gpu_hour
        self._clock = clock
        self._monotonic = monotonic
        self._seen: dict[tuple[str, int], _Seen] = {}
        if self._usd and not self._rate:
            log.warning("max_usd stops no run while usd_per_gpu_hour is 0: set it to what an hour of the card costs.")

    def look(self, job: Job, attempt: Attempt) -> None:
        """Ask a run to save and stop, as its user would, once it is over a limit."""
        if not (self._hours or self._usd):
            return
        hours = self._worked(attempt) / 3600
        passed = self._passed(hours)
        if passed is None or job.stop_requested or job.state not in _STOPPED_IN:
            return
        name, words = passed
        why = (
            f"{words}, the {name} of the settings; it saves and stops. `fusion-tui retry {job.id[:8]}` goes on from "
            f"there with as much again; to let it run longer at once, raise {name} and start the supervisor anew"
        )
        with self._store.write() as db:
            now = self._clock()
            jobs.add_event(db, job.id, LIMIT, {"limit": name, "why": why}, now=now)
            control.stop(db, jobs.get(db, job.id), now=now)
        log.warning("job %s: %s", job.id, why)

    def forget(self, attempt: Attempt) -> None:
        """A worker is gone."""
        self._seen.pop((attempt.job_id, attempt.fence), None)

    def _passed(self, hours: float) -> tuple[str, str] | None:
        """Return the limit that so many hours have reached, and words for it."""
        if self._hours and hours >= self._hours:
            return "max_hours", f"it has worked for {hours:.3g} h"
        cost = hours * self._rate
        if self._usd and cost >= self._usd:
            return "max_usd", f"it has cost ${cost:.2f} ({hours:.3g} h at ${self._rate:g})"
        return None

    def _worked(self, attempt: Attempt) -> float:
        """Return the seconds that a run has worked."""
        key = (attempt.job_id, attempt.fence)
        if key not in self._seen:
            # What went on before this supervisor came is known by the worker's own lines, from there on by a clock
            # that nobody sets.
            before = worked_before(self._store.read(), attempt)
            self._seen[key] = _Seen(before + _seconds(attempt), self._monotonic())
        seen = self._seen[key]
        return seen.worked + self._monotonic() - seen.at


def worked_before(db: Database, attempt: Attempt) -> float:
    """Return the seconds that a run's earlier workers worked, since it was last retried by hand."""
    retried = [
        event.ts
        for event in jobs.events(db, attempt.job_id)
        if event.kind == "state" and event.payload.get("why") == "retry"
    ]
    since = max(retried, default=float("-inf"))
    earlier = attempts.of_job(db, attempt.job_id)
    return sum(_seconds(one) for one in earlier if one.fence < attempt.fence and one.started_at >= since)


def _seconds(attempt: Attempt) -> float:
    """Return how long a worker worked, by its last line: when it was found dead may be days later."""
    if not attempt.gate_opened or attempt.heard_at is None:
        return 0.0
    return max(0.0, attempt.heard_at - attempt.started_at)
