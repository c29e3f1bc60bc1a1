"""Starting a worker: claim, spawn behind a shut gate, commit its identity, open the gate.

The rule: each of these steps is safe to die after. A worker that no store knows finds its gate shut and leaves; one
that the store knows is adopted by whoever supervises next.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine import atomic, catalog, process
from engine.errors import EngineError
from engine.jobs import branches, chains
from engine.order import CHECKPOINTS, GATE, Data, Order
from engine.process import Identity
from engine.running import recover
from engine.service import Service
from store import Store, attempts, jobs, states
from store.attempts import Attempt
from store.catalog import Dataset
from store.jobs import Job

RESTART_WAIT_SECONDS = 5.0
# A worker that was killed is dead at once for everyone but the kernel, which has its threads and memory to take away.
REAP_SECONDS = 1.0

log = logging.getLogger("fusion.starting")


def claim(store: Store, job: Job, order: Order, directory: Path, now: float) -> bool:
    """Take a job under a new fence, with its attempt, in one transaction. Returns False where another was quicker."""
    columns: dict[str, Any] = {
        "started_at": job.started_at or now,
        "hold": None,
        "error": None,
        "activity": "starting a worker",
    }
    detail = {"device": order.device, "fence": order.fence}
    with store.write() as db:
        claimed = jobs.transition(
            db,
            job.id,
            states.PROVISIONING,
            fence=job.fence,
            new_fence=order.fence,
            now=now,
            detail=detail,
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


def make_order(service: Service, job: Job, device: str) -> Order:
    """Write down all that the worker needs. Raises EngineError where model or data are gone."""
    home, fence, output_id = service.home, job.fence + 1, chains.output_id(job.id)
    start = branches.start_of(service.store.read(), home, job)
    model, datasets = service.model(catalog.model_of(job)), _datasets(service, job)
    for kind, entry in (("model", model), *(("dataset", each) for each in datasets)):
        if not Path(entry.path).exists():
            raise EngineError(f"The files of the {kind} {entry.name} are gone from {entry.path}. Add it again.")
    return Order(
        job_id=job.id,
        fence=fence,
        type=job.type,
        device=device,
        hyperparams=job.hyperparams,
        model_id=model.id,
        model_name=model.name,
        model_path=str(home.start_model(job.id)) if start else model.path,
        output_id=output_id,
        output_name=catalog.makes(job),
        output_path=str(home.model(output_id)),
        checkpoint_roots=tuple(str(home.attempt(job.id, n) / CHECKPOINTS) for n in range(fence, 0, -1)),
        keep_checkpoints=service.settings.keep_checkpoints,
        start=start,
        **_told_of(service, datasets),
    )


def _datasets(service: Service, job: Job) -> list[Dataset]:
    """Return the datasets that a job reads; none for one that writes its text itself and reports on nothing else."""
    if job.type == catalog.CONTRACT and catalog.data_of(job) is None:
        return []
    return [service.dataset(reference) for reference in catalog.datasets_of(job) or ("",)]


def _told_of(service: Service, datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Return what an order says of datasets: that name, path and hash of the first are empty where there is none."""
    if not datasets:
        return dict.fromkeys(("dataset_name", "dataset_path", "dataset_sha256"), "")
    names = [each.name for each in datasets]

    def name(each: Dataset) -> str:
        return each.name if names.count(each.name) == 1 else f"{each.name} v{each.version}"

    told = [
        Data(name(each), each.path, each.sha256, each.format, str(service.home.tokens(each.id))) for each in datasets
    ]
    first = told[0]
    return {
        "dataset_name": first.name,
        "dataset_path": first.path,
        "dataset_sha256": first.sha256,
        "dataset_format": first.format,
        "cache_path": first.cache_path,
        "more_datasets": tuple(told[1:]),
    }


class Starter:
    """Starts the workers of one data folder, and knows those that it started itself."""

    def __init__(
        self, service: Service, launch: Callable[..., subprocess.Popen[bytes]], clock: Callable[[], float]
    ) -> None:
        self._service = service
        self._store = service.store
        self._launch = launch
        self._clock = clock
        self._children: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self._uncommitted: set[tuple[str, int]] = set()

    def ready(self, job: Job) -> Job | None:
        """Return a queued job with its settings resolved; None, with the job failed, where it cannot be started."""
        try:
            return chains.resolve(self._store, job)
        except EngineError as error:
            self._refuse(job, str(error))
            return None

    def start(self, job: Job, device: str, *, workers: int) -> bool:
        """Start a queued job on `device`, one of so many workers. Returns whether a worker is on its way."""
        try:
            order = make_order(self._service, job, device)
        except EngineError as error:
            self._refuse(job, str(error))
            return False
        directory = self._service.home.attempt(job.id, order.fence)
        if not claim(self._store, job, order, directory, self._clock()):
            return False
        try:
            atomic.step(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
            order.write(directory)
            child = self._launch(directory, python=self._service.settings.trainer_python, workers=workers)
        except OSError as error:
            self._give_back(order, error)
            return False
        key = (job.id, order.fence)
        self._children[key] = child
        self._uncommitted.add(key)
        self._commit(key)
        return True

    def _refuse(self, job: Job, error: str) -> None:
        with self._store.write() as db:
            now = self._clock()
            columns: dict[str, Any] = {"finished_at": now, "error": error, "hold": None}
            jobs.transition(db, job.id, states.FAILED, fence=job.fence, now=now, detail={"error": error}, **columns)

    def _give_back(self, order: Order, error: OSError) -> None:
        """Requeue a job whose worker could not even be started (disk full, no such interpreter)."""
        log.warning("job %s: no worker could be started: %s", order.job_id, error)
        attempt = attempts.get(self._store.read(), order.job_id, order.fence)
        if attempt:
            with self._store.write() as db:
                now = self._clock()
                full = atomic.is_full(error)  # of a quota or of inodes, too, which nobody sees beforehand
                hold = f"{recover.DISK_FULL if full else 'start'}: no worker could be started: {error}"
                wait = recover.DISK_FULL_WAIT_SECONDS if full else RESTART_WAIT_SECONDS
                jobs.add_event(db, order.job_id, "hold", {"why": hold}, now=now)
                recover.abandon(db, attempt, now, wait=wait, hold=hold)

    def commit_or_abandon(self, attempt: Attempt) -> None:
        """Commit a worker whose commit failed (a busy store); give up one that an earlier supervisor left unknown."""
        key = (attempt.job_id, attempt.fence)
        if key in self._uncommitted:
            self._commit(key)
            return
        with self._store.write() as db:
            recover.abandon(db, attempt, self._clock())

    def _commit(self, key: tuple[str, int]) -> None:
        """Store who the worker is, then open its gate."""
        pid = self._children[key].pid
        identity = process.identify(pid) or Identity(process.boot_id(), pid, 0)
        with self._store.write() as db:
            attempts.update(db, *key, boot_id=identity.boot_id, pid=pid, start_ticks=identity.start_ticks)
        self._uncommitted.discard(key)
        attempt = attempts.get(self._store.read(), *key)
        if attempt:
            self.open_gate(attempt)

    def open_gate(self, attempt: Attempt) -> None:
        """Let a committed worker begin."""
        atomic.step((Path(attempt.directory) / GATE).touch)
        with self._store.write() as db:
            attempts.update(db, attempt.job_id, attempt.fence, gate_opened=1)

    def reap(self) -> None:
        """Take the exit status of dead children, so that no zombie stays.

        Not once at a worker's end: its first thread may be gone while the others still are on their way.
        """
        for child in self._children.values():
            child.poll()

    def exit_code(self, attempt: Attempt) -> int | None:
        """Return how the process of a worker that is gone ended; None where it was no child of ours."""
        child = self._children.get((attempt.job_id, attempt.fence))
        if child is None:
            return None
        deadline = time.monotonic() + REAP_SECONDS
        while (code := child.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.002)
        return code

    def forget(self, attempt: Attempt) -> None:
        """A worker's end is written down: only now is its exit status needed no more."""
        child = self._children.get((attempt.job_id, attempt.fence))
        if child is not None and child.poll() is not None:
            del self._children[attempt.job_id, attempt.fence]
