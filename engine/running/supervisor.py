"""The supervisor: adopts, reaps, ingests, stops, claims and starts. One per data folder, by file lock.

The rule: only the holder of the lock claims jobs, starts workers or takes in what they write.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from engine import atomic, process, resources
from engine.errors import EngineError
from engine.jobs import branches, removal
from engine.jobs.submitting import ROOM_TO_START
from engine.launchers import local
from engine.plans.gate import Gate
from engine.process import DeathWatch, Identity
from engine.resources import Device
from engine.running import evidence, recover
from engine.running.ballast import BALLAST_BYTES, Ballast
from engine.running.deaths import Death, OomWatch, oom_kills
from engine.running.holds import Holds, Releases
from engine.running.ingest import ingest
from engine.running.limits import Limits
from engine.running.notices import Notices
from engine.running.stalls import STALL_SHOWN_SECONDS, Stalls
from engine.running.starting import Starter
from engine.service import Service
from store import StoreError, asked, attempts, jobs, states
from store.attempts import Attempt
from store.errors import StoreFull
from store.jobs import Job

TICK_SECONDS = 0.1
# Longer than a slow step, an evaluation or the writing of a large checkpoint.
STOP_GRACE_SECONDS = 600.0
RETRY_SECONDS = 1.0
QUEUE_SECONDS = 1.0  # between two looks at a queue of which nothing could start
QUEUE_LOOK = 500  # jobs looked at for one that may pass those before it
REMOVAL_SECONDS = 5.0  # between two looks for jobs whose removal was cut short
ORPHANS_LOOK = 50  # runs whose checkpoints are looked at in a round: some 20 ms
BALLAST_SECONDS = 5.0  # between two looks at whether the ballast is there
ROOM = ROOM_TO_START * 1.2  # below it no run starts

log = logging.getLogger("fusion.supervisor")


class AlreadyRunning(EngineError):
    """Another supervisor holds this data folder's lock."""


class Supervisor:
    """Carries out the queue of one data folder."""

    def __init__(
        self,
        service: Service,
        *,
        devices: Callable[[], Sequence[Device]] = resources.devices,
        launch: Callable[..., subprocess.Popen[bytes]] = local.launch,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        free_bytes: Callable[[Path], int] = resources.free_bytes,
        oom_count: Callable[[], int] = oom_kills,
        stop_grace: float = STOP_GRACE_SECONDS,
        stall_shown: float = STALL_SHOWN_SECONDS,
    ) -> None:
        """Take the lock. Raises AlreadyRunning, naming the holder."""
        self.service = service
        self._store = service.store
        self._devices = devices
        self._clock = clock
        self._monotonic = monotonic
        self._free_bytes = free_bytes
        self._stop_grace = stop_grace
        self._lock = self._take_lock()
        self._watch = DeathWatch()
        self._starter = Starter(service, launch, clock)
        self._holds = Holds(self._store, clock)
        self._releases = Releases(self._store, clock, monotonic)
        limit = service.settings.stall_limit_minutes * 60
        self._stalls = Stalls(
            self._store, self._holds, limit=limit, shown=stall_shown, clock=clock, monotonic=monotonic
        )
        self._limits = Limits(self._store, service.settings, clock=clock, monotonic=monotonic)
        self._notices = Notices(self._store, service.settings, service.home.root, clock=clock)
        self._oom = OomWatch(oom_count, monotonic)
        self._met: set[tuple[str, int]] = set()  # attempts whose worker this supervisor saw alive
        self._told: set[tuple[str, int]] = set()  # those that it has told to stop
        self._asked: dict[tuple[str, int], float] = {}  # those that it has asked to save, and of when the request is
        self._removals_looked = float("-inf")
        self._queue_looked = float("-inf")  # when nothing of the queue could start
        self._ballast = Ballast(service.home.ballast)
        self._ballast_looked = float("-inf")
        for folder in (service.home.root / name for name in ("runs", "models", "datasets", "cache")):
            atomic.sweep(folder)
        self._orphans = branches.release_orphans(self._store, service.home, now=clock())

    def _take_lock(self) -> int:
        # Python's descriptors are close-on-exec: a worker that inherited this one would hold the lock for ever.
        descriptor = os.open(self.service.home.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 64).decode(errors="replace").strip()
            os.close(descriptor)
            raise AlreadyRunning(
                f"A supervisor already runs for {self.service.home.root} (pid {holder or 'unknown'}). "
                "It carries out the queue; stop it first to run another."
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        except OSError as error:
            log.warning("The lock file cannot say whose it is: %s", error)  # a full disk; the lock itself holds
        return descriptor

    def close(self) -> None:
        """Give the lock back. Workers go on."""
        os.close(self._lock)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. What fails is logged and tried again: nobody is there to start it anew."""
        with self._notices.at_work():
            self._run(stop)

    def _run(self, stop: threading.Event) -> None:
        said = ""
        while not stop.is_set():
            try:
                self.tick()
                said = ""
            except Exception as error:
                if repr(error) != said:  # once: it may last for days, and the log may lie on the disk that is full
                    known = isinstance(error, StoreError | EngineError)
                    log.warning("A round failed, the next one tries again: %s", error, exc_info=not known)
                said = repr(error)
                stop.wait(RETRY_SECONDS)
            self._watch.wait(TICK_SECONDS)

    def tick(self) -> None:
        """Look after every open attempt once, then start what can start.

        Raises what one of these raised, after all of them had their turn: no attempt starves another.
        """
        failure: Exception | None = None
        self._starter.reap()
        for attempt in attempts.open_attempts(self._store.read()):
            try:
                self._with_ballast(self._attend, attempt)
            except Exception as error:  # noqa: BLE001  (kept, and raised below)
                failure = error
        for work in (self._start_queued, self._remove, self._release_orphans):
            try:
                self._with_ballast(work)
            except Exception as error:  # noqa: BLE001  (as above)
                failure = failure or error
        self._keep_ballast()
        self._oom.look()
        if failure:
            raise failure

    def busy(self) -> bool:
        """Say whether anything has a worker or is queued, what waits for a failed or cancelled run left out."""
        counts = self.service.job_counts()
        at_work = any(counts.get(state) for state in (states.PREEMPTED, *states.ACTIVE))
        return at_work or jobs.is_any_hopeful(self._store.read())

    # Room ---------------------------------------------------------------------------------------------------------

    def _with_ballast(self, work: Callable[..., None], *arguments: Attempt) -> None:
        """Do `work`; where the disk is too full for it, give up the ballast and try once more."""
        try:
            work(*arguments)
        except (StoreError, OSError) as error:
            if not (self._is_for_want_of_room(error) and self._ballast.give_up()):
                raise
            work(*arguments)

    def _is_for_want_of_room(self, error: Exception) -> bool:
        # SQLite calls it an I/O error where the room was wanted for shared memory.
        full = isinstance(error, StoreFull) or atomic.is_full(error)
        return full or self._free_bytes(self.service.home.root) < BALLAST_BYTES

    def _keep_ballast(self) -> None:
        now = self._monotonic()
        if now - self._ballast_looked >= BALLAST_SECONDS:
            self._ballast_looked = now
            self._ballast.keep(self._free_bytes(self.service.home.root))

    # Workers ------------------------------------------------------------------------------------------------------

    def _attend(self, attempt: Attempt) -> None:
        identity = evidence.worker(attempt)
        if identity is None:
            self._starter.commit_or_abandon(attempt)
            return
        # Looked at before the journal is read: what a dead worker wrote is then all there.
        alive = process.is_alive(identity)
        while ingest(self._store, attempt):
            attempt = attempts.get(self._store.read(), attempt.job_id, attempt.fence) or attempt
        if not alive:
            self._settle(attempt, identity)
            return
        self._watch.add(identity.pid)
        self._met.add((attempt.job_id, attempt.fence))
        if not attempt.gate_opened:
            self._starter.open_gate(attempt)
        job = jobs.get(self._store.read(), attempt.job_id)
        if job.stop_requested:
            self._stop(attempt, identity)
        else:
            self._have_saved(job, attempt, identity)
            self._stalls.look(job, attempt, identity)
            self._limits.look(job, attempt)

    def _settle(self, attempt: Attempt, identity: Identity) -> None:
        """Let follow what follows from a worker's end, once nothing of it is left."""
        self._watch.discard(identity.pid)
        death = Death(
            self._starter.exit_code(attempt),
            out_of_memory=self._oom.rose(),
            disk_full=self._free_bytes(self.service.home.root) < ROOM,
        )
        key = (attempt.job_id, attempt.fence)
        if key in self._met or death.exit_code is not None:
            # Of a worker that died unseen, the number may have been another's in the meantime.
            process.end_left_behind(identity)
        with self._store.write() as db:
            state = recover.settle(db, attempt, self._clock(), death)
        self._met.discard(key)
        self._told.discard(key)
        self._asked.pop(key, None)
        self._queue_looked = self._removals_looked = float("-inf")
        self._starter.forget(attempt)
        self._releases.ended(attempt)
        self._stalls.forget(attempt)
        self._limits.forget(attempt)
        ended = attempt.outcome or f"lost: {death.words}"
        log.info("job %s: attempt %d ended (%s), now %s", attempt.job_id, attempt.fence, ended, state)

    def _have_saved(self, job: Job, attempt: Attempt, identity: Identity) -> None:
        """Ask a worker for the checkpoint that its user wants, once for each request: it stands until there is one.

        Asked again by the next supervisor, it saves no more often: what it has saved is taken in before.
        """
        if not job.save_requested or job.state != states.RUNNING:
            return
        key, wanted = (attempt.job_id, attempt.fence), asked.save_asked_at(self._store.read(), job.id)
        if self._asked.get(key) != wanted and process.listens(identity, process.SAVE):
            process.send(identity, process.SAVE)
            self._asked[key] = wanted

    def _stop(self, attempt: Attempt, identity: Identity) -> None:
        """Ask a worker once to finish its step and save; end its group when the grace is over."""
        now, key = self._clock(), (attempt.job_id, attempt.fence)
        if attempt.stop_signalled_at is None:
            # Once, though the write below may fail and be tried again: a second signal ends a worker without a save.
            if key not in self._told:
                process.send(identity, signal.SIGTERM)
                self._told.add(key)
            with self._store.write() as db:
                attempts.update(db, attempt.job_id, attempt.fence, stop_signalled_at=now)
        elif now - attempt.stop_signalled_at > self._stop_grace:
            process.send(identity, signal.SIGKILL, group=True)

    def _remove(self) -> None:
        """Remove the jobs that were to go as soon as nothing works on them.

        Raises what one of these raised, after all of them had their turn.
        """
        if self._monotonic() - self._removals_looked < REMOVAL_SECONDS:
            return
        self._removals_looked = self._monotonic()
        failure: Exception | None = None
        for job_id in asked.going(self._store.read()):
            try:
                gone = removal.carry_out(self._store, self.service.home, job_id, now=self._clock())
                log.info("job %s: %s", job_id, "removed, as asked" if gone else "not removed; its history says why")
            except Exception as error:  # noqa: BLE001  (kept, and raised below)
                failure = failure or error
        if failure:
            raise failure

    def _release_orphans(self) -> None:
        """Go on with the look at all runs' checkpoints that each supervisor takes once."""
        for _ in islice(self._orphans, ORPHANS_LOOK):
            pass

    # The queue ----------------------------------------------------------------------------------------------------

    def _start_queued(self) -> None:
        db, now = self._store.read(), self._clock()
        if 0 <= now - self._queue_looked < QUEUE_SECONDS:
            return
        if not jobs.is_queued(db, now=now):
            self._holds.clear()
            return
        # Asked first: the rows of a long queue cost more than this.
        devices = list(self._devices())
        taken = {attempt.device for attempt in attempts.open_attempts(db)}
        free = [device for device in devices if device.name not in taken and not self._releases.pending(device)]
        if not free:
            return
        gate, disk, started = Gate(db, devices), self._free_bytes(self.service.home.root), False
        for queued in jobs.next_queued(db, now=now, limit=QUEUE_LOOK):
            if not free:
                break
            job = self._starter.ready(queued)
            # A job that has to wait lets the next one pass: a card stands idle for nobody.
            device = self._place(job, free, gate, disk) if job else None
            if job and device:
                free.remove(device)
                self._releases.started(device)
                started |= self._starter.start(job, device.name, workers=len(taken) + 1 if len(devices) > 1 else 1)
        self._holds.write()
        if not started:
            self._queue_looked = now

    def _place(self, job: Job, free: Sequence[Device], gate: Gate, disk: int) -> Device | None:
        """Return the device that a job may start on now; hold it where there is none. That costs no retry."""
        if disk < ROOM:
            room = resources.size_text(disk)
            self._holds.say(job, recover.DISK_FULL, lambda: f"{room} free; the run starts when there is space")
            return None
        admitting = [device for device in free if gate.admits(job, device)]
        if not admitting:
            self._holds.say(job, "memory", lambda: gate.reason(job, max(free, key=lambda device: device.memory_total)))
        return admitting[0] if admitting else None
