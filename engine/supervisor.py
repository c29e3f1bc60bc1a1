"""The supervisor: adopts, reaps, ingests, stops, claims and starts. One per data folder, by file lock.

The rule: only the holder of the lock claims jobs, starts workers or takes in what they write. A worker starts in four
steps, each safe to die after: claim (fence + 1), spawn behind a shut gate, commit its identity, open the gate.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine import atomic, process, recover, resources
from engine.errors import EngineError
from engine.ingest import ingest
from engine.launchers import local
from engine.order import CHECKPOINTS, GATE, Order
from engine.plans.gate import Gate
from engine.process import DeathWatch, Identity
from engine.resources import Device
from engine.service import ROOM_TO_START, Service
from store import StoreError, attempts, jobs, states
from store.attempts import Attempt
from store.jobs import Job

TICK_SECONDS = 0.1
# Longer than a slow step, an evaluation or the writing of a large checkpoint.
STOP_GRACE_SECONDS = 600.0
RESTART_WAIT_SECONDS = 5.0
RETRY_SECONDS = 1.0
HOLD_SECONDS = 5.0  # between two looks at who is in a waiting run's way

log = logging.getLogger("fusion.supervisor")


class AlreadyRunning(EngineError):
    """Another supervisor holds this data folder's lock."""


def _identity(attempt: Attempt) -> Identity | None:
    if attempt.pid is None or attempt.start_ticks is None:
        return None
    return Identity(attempt.boot_id or "", attempt.pid, attempt.start_ticks)


class Supervisor:
    """Carries out the queue of one data folder."""

    def __init__(
        self,
        service: Service,
        *,
        devices: Callable[[], Sequence[Device]] = resources.devices,
        launch: Callable[..., subprocess.Popen[bytes]] = local.launch,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[Path], int] = resources.free_bytes,
        stop_grace: float = STOP_GRACE_SECONDS,
    ) -> None:
        """Take the lock. Raises AlreadyRunning, naming the holder."""
        self.service = service
        self._store = service.store
        self._devices = devices
        self._launch = launch
        self._clock = clock
        self._free_bytes = free_bytes
        self._stop_grace = stop_grace
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._uncommitted: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self._held: dict[str, float] = {}
        self._watch = DeathWatch()
        self._lock = self._take_lock()
        for folder in (service.home.root / name for name in ("runs", "models", "datasets", "cache")):
            atomic.sweep(folder)

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
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        return descriptor

    def close(self) -> None:
        """Give the lock back. Workers go on."""
        os.close(self._lock)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. What fails is logged and tried again: nobody is there to start it anew."""
        while not stop.is_set():
            try:
                self.tick()
            except StoreError as error:
                log.warning("%s", error)
                stop.wait(RETRY_SECONDS)
            except Exception:
                log.exception("A round failed; the next one tries again.")
                stop.wait(RETRY_SECONDS)
            self._watch.wait(TICK_SECONDS)

    def tick(self) -> None:
        """Look after every open attempt once, then start what can start.

        Raises what one of these raised, after all of them had their turn: no attempt starves another.
        """
        failure: Exception | None = None
        self._reap()
        for attempt in attempts.open_attempts(self._store.read()):
            try:
                self._attend(attempt)
            except Exception as error:  # noqa: BLE001  (kept, and raised below)
                failure = error
        self._start_queued()
        if failure:
            raise failure

    def busy(self) -> bool:
        """Say whether anything is queued or has a worker."""
        counts = self.service.job_counts()
        return any(counts.get(state) for state in (states.QUEUED, states.PREEMPTED, *states.ACTIVE))

    def _attend(self, attempt: Attempt) -> None:
        identity = _identity(attempt)
        if identity is None:
            self._commit_or_abandon(attempt)
            return
        # Looked at before the journal is read: what a dead worker wrote is then all there.
        alive = process.is_alive(identity)
        while ingest(self._store, attempt):
            attempt = attempts.get(self._store.read(), attempt.job_id, attempt.fence) or attempt
        if not alive:
            self._watch.discard(identity.pid)
            with self._store.write() as db:
                state = recover.settle(db, attempt, self._clock())
            log.info("job %s: attempt %d ended (%s), now %s", attempt.job_id, attempt.fence, attempt.outcome, state)
            return
        self._watch.add(identity.pid)
        if not attempt.gate_opened:
            self._open_gate(attempt)
        if jobs.get(self._store.read(), attempt.job_id).stop_requested:
            self._stop(attempt, identity)

    def _commit_or_abandon(self, attempt: Attempt) -> None:
        """Commit a worker whose commit failed (a busy store); give up one that an earlier supervisor left unknown."""
        child = self._uncommitted.get((attempt.job_id, attempt.fence))
        if child is not None:
            self._commit(attempt.job_id, attempt.fence, child)
            return
        with self._store.write() as db:
            recover.abandon(db, attempt, self._clock())

    def _reap(self) -> None:
        """Take the exit status of dead children, so that no zombie stays.

        Not once at a worker's end: its first thread may be gone while the others still are on their way.
        """
        self._children = {pid: child for pid, child in self._children.items() if child.poll() is None}

    def _stop(self, attempt: Attempt, identity: Identity) -> None:
        """Ask a worker once to finish its step and save; end its group when the grace is over."""
        now = self._clock()
        if attempt.stop_signalled_at is None:
            process.send(identity, signal.SIGTERM)
            with self._store.write() as db:
                attempts.update(db, attempt.job_id, attempt.fence, stop_signalled_at=now)
        elif now - attempt.stop_signalled_at > self._stop_grace:
            process.send(identity, signal.SIGKILL, group=True)

    def _start_queued(self) -> None:
        db = self._store.read()
        queued = jobs.next_queued(db, now=self._clock())
        if not queued:
            self._held.clear()
            return
        devices = list(self._devices())
        taken = {attempt.device for attempt in attempts.open_attempts(db)}
        free = [device for device in devices if device.name not in taken]
        gate = Gate(db, devices)
        for job in queued:
            if not free:
                return
            # A job that has to wait lets the next one pass: a card stands idle for nobody.
            device = self._place(job, free, gate)
            if device:
                free.remove(device)
                self._start(job, device.name, workers=len(taken) + 1 if len(devices) > 1 else 1)

    def _place(self, job: Job, free: Sequence[Device], gate: Gate) -> Device | None:
        """Return the device that a job may start on now; hold it where there is none. That costs no retry."""
        disk = self._free_bytes(self.service.home.root)
        if disk < ROOM_TO_START * 1.2:
            room = resources.size_text(disk)
            self._hold(job, "disk_full", lambda: f"{room} free; the run starts when there is space")
            return None
        admitting = [device for device in free if gate.admits(job, device)]
        if not admitting:
            self._hold(job, "memory", lambda: gate.reason(job, max(free, key=lambda device: device.memory_total)))
        return admitting[0] if admitting else None

    def _hold(self, job: Job, cause: str, reason: Callable[[], str]) -> None:
        """Say why a job waits: once in its history, and in its row as it stands now."""
        now = self._clock()
        before = (job.hold or "").partition(":")[0]
        if before == cause and now - self._held.get(job.id, 0.0) < HOLD_SECONDS:
            return
        hold = f"{cause}: {reason()}"
        self._held[job.id] = now
        with self._store.write() as db:
            jobs.update(db, job.id, hold=hold)
            if before != cause:
                jobs.add_event(db, job.id, "hold", {"why": hold}, now=now)

    def _start(self, job: Job, device: str, *, workers: int) -> None:
        try:
            order = self._order(job, device)
        except EngineError as error:
            with self._store.write() as db:
                now = self._clock()
                columns: dict[str, Any] = {"finished_at": now, "error": str(error)}
                detail = {"error": str(error)}
                jobs.transition(db, job.id, states.FAILED, fence=job.fence, now=now, detail=detail, **columns)
            return
        directory = self.service.home.attempt(job.id, order.fence)
        if not self._claim(job, order, directory):
            return
        try:
            atomic.step(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
            order.write(directory)
            child = self._launch(directory, python=self.service.settings.trainer_python, workers=workers)
        except OSError as error:
            self._give_back(order, error)
            return
        self._children[child.pid] = child
        self._uncommitted[job.id, order.fence] = child
        self._commit(job.id, order.fence, child)

    def _give_back(self, order: Order, error: OSError) -> None:
        """Requeue a job whose worker could not even be started (disk full, no such interpreter)."""
        log.warning("job %s: no worker could be started: %s", order.job_id, error)
        attempt = attempts.get(self._store.read(), order.job_id, order.fence)
        if attempt:
            with self._store.write() as db:
                now = self._clock()
                jobs.add_event(db, order.job_id, "hold", {"why": str(error)}, now=now)
                recover.abandon(db, attempt, now, wait=RESTART_WAIT_SECONDS)
                jobs.update(db, order.job_id, hold=f"no worker could be started: {error}")

    def _claim(self, job: Job, order: Order, directory: Path) -> bool:
        """Take the job under a new fence, with its attempt, in one transaction."""
        now = self._clock()
        columns: dict[str, Any] = {
            "started_at": job.started_at or now,
            "hold": None,
            "error": None,
            "activity": "starting a worker",
        }
        with self._store.write() as db:
            claimed = jobs.transition(
                db,
                job.id,
                states.PROVISIONING,
                fence=job.fence,
                new_fence=order.fence,
                now=now,
                detail={"device": order.device, "fence": order.fence},
                **columns,
            )
            if claimed:
                attempts.begin(
                    db,
                    job.id,
                    order.fence,
                    device=order.device,
                    directory=str(directory),
                    start_step=job.last_checkpoint_step,
                    now=now,
                )
        return claimed

    def _commit(self, job_id: str, fence: int, child: subprocess.Popen[bytes]) -> None:
        """Store who the worker is, then open its gate."""
        identity = process.identify(child.pid) or Identity(process.boot_id(), child.pid, 0)
        known = {"boot_id": identity.boot_id, "pid": identity.pid, "start_ticks": identity.start_ticks}
        with self._store.write() as db:
            attempts.update(db, job_id, fence, **known)
        del self._uncommitted[job_id, fence]
        attempt = attempts.get(self._store.read(), job_id, fence)
        if attempt:
            self._open_gate(attempt)
            self._watch.add(identity.pid)

    def _open_gate(self, attempt: Attempt) -> None:
        atomic.step((Path(attempt.directory) / GATE).touch)
        with self._store.write() as db:
            attempts.update(db, attempt.job_id, attempt.fence, gate_opened=1)

    def _order(self, job: Job, device: str) -> Order:
        """Write down all that the worker needs. Raises EngineError where model or data are gone."""
        home, fence = self.service.home, job.fence + 1
        model = self.service.model(job.base_model_id or job.source_model_id or "")
        dataset = self.service.dataset(job.dataset_id or "")
        for kind, entry in (("model", model), ("dataset", dataset)):
            if not Path(entry.path).exists():
                raise EngineError(f"The files of the {kind} {entry.name} are gone from {entry.path}. Add it again.")
        output_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"fusion-tui/output/{job.id}"))
        return Order(
            job_id=job.id,
            fence=fence,
            type=job.type,
            device=device,
            hyperparams=job.hyperparams,
            model_id=model.id,
            model_name=model.name,
            model_path=model.path,
            dataset_name=dataset.name,
            dataset_path=dataset.path,
            dataset_sha256=dataset.sha256,
            output_id=output_id,
            output_name=job.hyperparams["output_name"],
            output_path=str(home.model(output_id)),
            checkpoint_roots=tuple(str(home.attempt(job.id, n) / CHECKPOINTS) for n in range(fence, 0, -1)),
            keep_checkpoints=self.service.settings.keep_checkpoints,
            dataset_format=dataset.format,
            cache_path=str(home.tokens(dataset.id)),
        )
