"""The one door to the work: what the terminal app, the command line and the HTTP API all call.

The rule: a rule about jobs, models or datasets stands here or below, never in a face. Methods are safe to call from
any thread; each takes milliseconds except the imports, which report progress.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import atomic, catalog, chains, lineage, pins, resources, settings, submitting
from engine.catalog import AnyModel
from engine.data.importing import Progress, silent
from engine.errors import Conflict, UnknownReference
from engine.lineage import Lineage
from engine.paths import Home
from engine.resources import Device
from engine.settings import Settings
from engine.submitting import Submission
from store import NotFound, Store, StoreError, memory_peaks, states, telemetry
from store import catalog as entries
from store import jobs as job_rows
from store import keys as key_rows
from store.catalog import BaseModel, Dataset, Model
from store.jobs import Event, Job
from store.keys import Key
from store.telemetry import OWN, Checkpoint, LogLine, Point

if TYPE_CHECKING:
    from engine.data.inspection import Inspection
    from engine.plans.advice import Advice
    from engine.plans.planning import MemoryReport

__all__ = [
    "OWN",
    "AnyModel",
    "BaseModel",
    "Checkpoint",
    "Dataset",
    "Device",
    "Event",
    "Job",
    "Key",
    "Lineage",
    "LogLine",
    "Model",
    "NotFound",
    "Point",
    "Service",
    "StoreError",
    "Submission",
    "states",
]


def package_version() -> str:
    """Return the installed version of fusion-tui."""
    try:
        return version("fusion-tui")
    except PackageNotFoundError:
        return "0+source"


class Service:
    """One data folder, its store and its settings."""

    def __init__(
        self,
        home: Home | None = None,
        *,
        config: Settings | None = None,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        read_only: bool | None = None,
    ) -> None:
        """Open (or make) the data folder; `read_only` changes nothing (None: where nothing can be written, or
        FUSION_READ_ONLY asks for it). Raises StoreError, EngineError.
        """
        self.home = home or Home.default()
        self.read_only = self.home.read_only() if read_only is None else read_only
        self.settings = config or settings.load()
        self._clock = clock
        self._new_id = new_id
        if not self.read_only:
            self.home.make()
        self.store = Store(self.home.store, read_only=self.read_only)
        if not self.read_only:
            catalog.seed_starter(self.store, clock())

    def close(self) -> None:
        """Close the store's connections."""
        self.store.close()

    def version(self) -> int:
        """Return a number that changes, for this thread, whenever anyone committed to the store."""
        return int(self.store.read().execute("PRAGMA data_version").fetchone()[0])

    # Jobs ---------------------------------------------------------------------------------------------------------

    def submit(self, payload: Mapping[str, Any], *, careful: bool = False) -> Submission:
        """Queue a job. The same idempotency key with the same payload returns the same job.

        `payload` is a request of the fusion dialect; models and datasets may be named by id or by name. A learning
        rate far above the recommended one is put into the job's history; where `careful`, one that diverges is refused.
        Raises InvalidRequest, UnknownReference, Conflict (key reused with another payload), NoSpace, StoreError.
        """
        return submitting.submit(
            self.store, self.home, payload, careful=careful, now=self._clock(), new_id=self._new_id
        )

    def validate(self, payload: Mapping[str, Any]) -> None:
        """Raise what `submit` would raise for a payload that cannot be a job; change nothing."""
        submitting.validate(self.store.read(), payload)

    def plan(self, payload: Mapping[str, Any], *, card_gb: float | None = None) -> MemoryReport:
        """Return how much memory a request needs here, or on an NVIDIA card of a size; see `planning.of_request`.

        Raises InvalidRequest, UnknownReference; EngineError where the model's memory cannot be planned.
        """
        from engine.plans import planning

        db = self.store.read()
        return planning.of_request(db, chains.with_model(db, payload), card_gb=card_gb)

    def recommend(self, **asked: Any) -> Advice:
        """Return settings to start from; `asked` are the fields of `engine.plans.advice.Asked`, entries by id or name.

        Raises UnknownReference; InvalidRequest where the size of the model or of the data cannot be known.
        """
        from engine.plans import advice

        return advice.advise(advice.Asked.of(self.store.read(), **asked), self.plan)

    def jobs(self, *, status: str | None = None, limit: int | None = None, offset: int = 0) -> list[Job]:
        """Return jobs, newest first."""
        return job_rows.newest(self.store.read(), state=status, limit=limit, offset=offset)

    def job(self, job_id: str) -> Job:
        """Return the job with exactly this id. Raises NotFound."""
        return job_rows.get(self.store.read(), job_id)

    def find_job(self, reference: str) -> Job:
        """Return the job that an id, a unique prefix of one, or a name means. Raises NotFound."""
        return chains.find_job(self.store.read(), reference)

    def is_stuck(self, job: Job) -> bool:
        """Say whether a job waits for one that failed or was cancelled: only a person's retry lets it go on."""
        return job.state == states.QUEUED and chains.awaits_in_vain(self.store.read(), job)

    def job_counts(self) -> dict[str, int]:
        """Return how many jobs are in each state that has any."""
        return job_rows.count(self.store.read())

    def points(self, job_id: str, *, since_step: int = -1, phase: str | None = None) -> list[Point]:
        """Return telemetry points newer than `since_step`, in order, as `telemetry.points` says."""
        return telemetry.points(self.store.read(), job_id, since_step=since_step, phase=phase)

    def latest_step(self, job_id: str) -> int:
        """Return the highest of a job's own steps with a point, or -1; see `telemetry.latest_step`."""
        return telemetry.latest_step(self.store.read(), job_id)

    def latest_points(self, job_ids: list[str]) -> dict[str, Point]:
        """Return each job's newest training point, where it has one."""
        return telemetry.latest_points(self.store.read(), job_ids)

    def logs(self, job_id: str, *, since: int = 0) -> list[LogLine]:
        """Return the kept log lines with a number above `since`."""
        return telemetry.log_lines(self.store.read(), job_id, since=since)

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Return a job's events with an id above `after`, oldest first."""
        return job_rows.events(self.store.read(), job_id, after=after)

    def result(self, job_id: str) -> dict[str, Any] | None:
        """Return a job's result with its cost at the user's rate, or None while there is none."""
        body = telemetry.result(self.store.read(), job_id)
        if body is None:
            return None
        cost = body.get("gpu_seconds", 0.0) / 3600 * self.settings.usd_per_gpu_hour
        peak, plan = memory_peaks.of_job(self.store.read(), job_id), self.job(job_id).plan
        seen = {"memory_planned_bytes": plan and plan["needed"], "memory_measured_bytes": peak and peak.measured}
        return {"job_id": job_id, **body, "cost_usd": round(cost, 6), **seen}

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Return a job's checkpoints, oldest first."""
        return telemetry.checkpoints(self.store.read(), job_id)

    def pin_checkpoint(self, job_id: str, step: int, pinned: bool = True) -> Checkpoint:
        """Keep a checkpoint for good, or no longer; one that is pinned goes only when its job is deleted.

        Raises NotFound; Conflict where it is removed or damaged; NoSpace, DiskFailed; StoreReadOnly, StoreBusy,
        StoreFull. What is refused leaves no mark that was not there before.
        """
        self.store.need_writable()
        name = self.job(job_id).name
        found = telemetry.checkpoint(self.store.read(), job_id, step)
        if found is None:
            raise NotFound(f"The job {name} has no checkpoint of step {step}. See: fusion-tui checkpoints {job_id[:8]}")
        if found.state != "published":
            raise Conflict(f"The checkpoint of step {step} of the job {name} is {found.state}; it cannot be pinned.")
        directory = Path(found.path)
        # The mark is what keeps it: set before the store says so, and taken away after.
        with atomic.telling(f"pinning the checkpoint of step {step}", directory):
            marked = pins.is_pinned(directory)
            try:
                if pinned:
                    pins.pin(directory)
                with self.store.write() as db:
                    telemetry.pin_checkpoint(db, job_id, step, pinned)
            except FileNotFoundError:
                raise Conflict(f"The checkpoint of step {step} of the job {name} is gone from the disk.") from None
            except BaseException:
                if pinned and not marked:
                    with suppress(OSError):  # the error that led here is the one to tell
                        pins.unpin(directory)
                raise
            if not pinned:
                pins.unpin(directory)
        return dataclasses.replace(found, pinned=pinned)

    def cancel(self, job_id: str) -> Job:
        """End a queued job at once; ask a running one to finish its step, save and stop.

        Raises NotFound; Conflict when the job is finished already.
        """
        now = self._clock()
        with self.store.write() as db:
            job = job_rows.get(db, job_id)
            if job.finished:
                raise Conflict(f"The job {job.name} is {job.state} already.")
            if job.state in (states.QUEUED, states.PREEMPTED):
                job_rows.transition(db, job_id, states.CANCELLED, fence=job.fence, now=now, finished_at=now, hold=None)
            elif not job.stop_requested:
                job_rows.update(db, job_id, stop_requested=1)
                job_rows.add_event(db, job_id, "stop_requested", {}, now=now)
            return job_rows.get(db, job_id)

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again; it goes on from its newest checkpoint.

        One that starts after another job waits for that one again, where it is not completed. Raises NotFound;
        Conflict when the job is neither failed nor cancelled, or its model, its dataset or that other job is removed.
        """
        with self.store.write() as db:
            job = job_rows.get(db, job_id)
            cleared: dict[str, Any] = {
                "error": None,
                "finished_at": None,
                "stop_requested": 0,
                "not_before": 0.0,
                "activity": "",
                "done": None,
                "hold": job_rows.hold_after(db, job.after_id),
            }
            if states.QUEUED in states.TRANSITIONS[job.state]:
                chains.need_again(db, job)
            if not job_rows.transition(
                db, job_id, states.QUEUED, fence=job.fence, now=self._clock(), detail={"why": "retry"}, **cleared
            ):
                raise Conflict(f"The job {job.name} is {job.state}; only failed and cancelled jobs can be retried.")
            return job_rows.get(db, job_id)

    def delete(self, job_id: str) -> None:
        """Remove a finished job with its telemetry and checkpoints, pinned ones too; the model it made stays.

        Raises NotFound; Conflict while the job is not finished, or others wait for it.
        """
        with self.store.write() as db:
            job = job_rows.get(db, job_id)
            if not job.finished:
                raise Conflict(f"The job {job.name} is {job.state}. Cancel it first: fusion-tui cancel {job.id[:8]}")
            chains.need_unawaited(db, job)
            job_rows.delete(db, job_id)
        atomic.remove_tree(self.home.run(job_id))

    # Catalogue ----------------------------------------------------------------------------------------------------

    def base_models(self) -> list[BaseModel]:
        """Return the imported models."""
        return entries.base_models(self.store.read())

    def models(self) -> list[Model]:
        """Return the models that jobs made, newest first."""
        return entries.models(self.store.read())

    def datasets(self) -> list[Dataset]:
        """Return the datasets, every version."""
        return entries.datasets(self.store.read())

    def lineages(self, models: Sequence[Model]) -> dict[str, Lineage]:
        """Return where each of these models comes from, by its id."""
        return lineage.of_models(self.store.read(), models)

    def predecessor_of(self, job: Job) -> str | None:
        """Return the name of the job that this one starts after, or a short id where it was deleted; None for none."""
        if job.after_id is None:
            return None
        return job_rows.name_of(self.store.read(), job.after_id) or f"{job.after_id[:8]} (deleted)"

    def model(self, reference: str) -> AnyModel:
        """Return the base or trained model with this id, name or unique prefix. Raises UnknownReference."""
        return catalog.find_model(self.store.read(), reference)

    def dataset(self, reference: str) -> Dataset:
        """Return the dataset with this id, name or unique prefix. Raises UnknownReference."""
        return catalog.find_dataset(self.store.read(), reference)

    def name_of(self, entry_id: str | None) -> str:
        """Return the name of a model or dataset; @JOB for the model that JOB has still to make; else a short id."""
        for find in (self.model, self.dataset):
            try:
                return find(entry_id or "").name
            except UnknownReference:
                continue
        if not entry_id:
            return "–"
        maker = chains.maker_of(self.store.read(), entry_id)
        return f"@{maker}" if maker else f"{entry_id[:8]} (removed)"

    def add_model(self, source: str, name: str, progress: Progress = silent) -> BaseModel:
        """Import a model: a folder, a GGUF file or a hub name. Raises InvalidData, NoSpace, InvalidRequest."""
        python = self.settings.trainer_python
        return catalog.add_model(
            self.store, self.home, source, name, now=self._clock(), progress=progress, python=python
        )

    def add_dataset(self, source: str, name: str, progress: Progress = silent, **asked: Any) -> Dataset:
        """Import rows as a new version of `name`; `asked`: `form`, `drop_bad` of `catalog.add_dataset`.

        Raises InvalidData, naming the first bad rows unless `drop_bad` leaves them out; NoSpace, InvalidRequest.
        """
        now = self._clock()
        return catalog.add_dataset(self.store, self.home, source, name, now=now, progress=progress, **asked)

    def inspect_dataset(self, reference: str, model: str, **asked: Any) -> Inspection:
        """Return what a model will see of a dataset; `asked` as in `catalog.inspect_dataset`. Takes seconds.

        Raises UnknownReference, InvalidRequest, InvalidData.
        """
        python = self.settings.trainer_python
        return catalog.inspect_dataset(self.home, self.dataset(reference), self.model(model), python=python, **asked)

    def remove_model(self, reference: str) -> AnyModel:
        """Remove a model; a folder that was imported in place stays. Raises UnknownReference, Conflict."""
        entry = self.model(reference)
        catalog.remove(self.store, self.home, entry)
        return entry

    def remove_dataset(self, reference: str) -> Dataset:
        """Remove a dataset version. Raises UnknownReference, Conflict."""
        entry = self.dataset(reference)
        catalog.remove(self.store, self.home, entry)
        return entry

    # Machine and access -------------------------------------------------------------------------------------------

    def devices(self) -> list[Device]:
        """Return the devices that jobs run on, with their load."""
        return resources.devices()

    def token(self) -> str:
        """Return the first API key, making it (all scopes, in a 0600 file) where there is none."""
        path = self.home.token
        # The write lock keeps two first starts apart; the file may outlive a crash before the row was committed.
        with self.store.write() as db:
            secret = path.read_text().strip() if path.exists() else ""
            if not secret:
                secret = f"fus_{secrets.token_urlsafe(32)}"
                atomic.write_bytes(path, secret.encode() + b"\n")
            if not key_rows.is_known(db, secret):
                now = self._clock()
                key_rows.add(db, id=self._new_id(), name="first key", secret=secret, scopes=key_rows.SCOPES, now=now)
        return secret

    def authenticate(self, secret: str) -> Key | None:
        """Return the key with this secret, or None."""
        return key_rows.authenticate(self.store.read(), secret)

    def keys(self) -> list[Key]:
        """Return the live API keys, without their secrets."""
        return key_rows.listing(self.store.read())

    def health(self) -> dict[str, Any]:
        """Return what GET /health answers: version, state of the store, number of live workers."""
        counts = self.job_counts()
        working = sum(counts.get(state, 0) for state in states.ACTIVE)
        store_state = "readonly" if self.read_only or not os.access(self.home.store, os.W_OK) else "ok"
        return {"status": "ok", "version": package_version(), "store": store_state, "workers": working}
