"""Workers of which nothing is heard: shown after some minutes, ended only where the user's settings say when.

The rule: a worker counts as silent only for as long as this supervisor has itself waited for a line of it, so that
neither a machine that slept nor a supervisor that was away is taken for a worker that stands still.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable

from engine import process
from engine.process import Identity
from engine.running.holds import Holds
from store import Store, attempts, jobs
from store.attempts import Attempt
from store.jobs import Job

# Longer than a usual step, evaluation or save; such may well take longer, so it is shown and no more.
STALL_SHOWN_SECONDS = 300.0
STALLED = "stalled"  # the cause, in holds and in an attempt's detail

log = logging.getLogger("fusion.stalls")


class Stalls:
    """Looks after the silence of the workers of one store."""

    def __init__(
        self,
        store: Store,
        holds: Holds,
        *,
        limit: float,
        shown: float = STALL_SHOWN_SECONDS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit` is the silence in seconds that ends a worker, 0 for none; `shown` the one that is told."""
        self._store = store
        self._holds = holds
        self._limit = limit
        self._shown = shown
        self._clock = clock
        self._monotonic = monotonic
        self._waiting: dict[tuple[str, int], tuple[float | None, float]] = {}

    def look(self, job: Job, attempt: Attempt, identity: Identity) -> None:
        """Tell of a worker that is silent for long; end its group where it is silent for too long."""
        key = (attempt.job_id, attempt.fence)
        if self._waiting.get(key, (None, 0.0))[0] != attempt.heard_at or key not in self._waiting:
            self._waiting[key] = (attempt.heard_at, self._monotonic())
        # The clock of the day may have been set, and runs on while the machine sleeps; the other does neither.
        heard = attempt.heard_at or attempt.started_at
        silent = min(self._clock() - heard, self._monotonic() - self._waiting[key][1])
        if self._limit and silent >= self._limit:
            self._end(job, attempt, identity)
        elif silent >= self._shown:
            self._holds.say(job, STALLED, lambda: self._words(job, heard, identity), kind=STALLED)
            self._holds.write()

    def forget(self, attempt: Attempt) -> None:
        """A worker is gone."""
        self._waiting.pop((attempt.job_id, attempt.fence), None)

    def _words(self, job: Job, heard: float, identity: Identity) -> str:
        minutes = max(1, int((self._clock() - heard) // 60))
        stands = f"; its process is stopped (kill -CONT {identity.pid})" if process.is_stopped(identity) else ""
        return f"nothing heard for {minutes} min; last: {job.activity or job.state}{stands}"

    def _end(self, job: Job, attempt: Attempt, identity: Identity) -> None:
        """End a worker's group by signal 9: one that is stopped, or stuck in a driver, heeds no other."""
        if attempt.outcome is None and STALLED not in (attempt.detail or ""):
            limit = f"{self._limit / 60:g}"
            why = f"nothing heard for {limit} min, the stall_limit_minutes of the settings; its worker is ended"
            detail = json.dumps({"error": None, "cause": STALLED})
            with self._store.write() as db:
                # Before the signal, so that whoever finds the worker dead knows why.
                attempts.update(db, attempt.job_id, attempt.fence, detail=detail)
                jobs.add_event(db, job.id, STALLED, {"why": why}, now=self._clock())
            log.warning("job %s: %s", job.id, why)
        process.send(identity, signal.SIGKILL, group=True)
