"""The one door to the work: what the terminal app, the command line and the HTTP API all call.

The rule: a rule about jobs, models or datasets stands here or below, never in a face. Methods are safe to call from
any thread; each takes milliseconds except the imports, which report progress.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import catalog, resources, settings, sizes, usage
from engine import keys as api_keys
from engine.catalog import AnyModel
from engine.curves import Curves, Thinned
from engine.data.importing import Progress, silent
from engine.errors import EngineError, UnknownReference
from engine.jobs import chains, control, lineage, removal, resolving, submitting
from engine.jobs.lineage import Dependents, Lineage
from engine.jobs.resolving import NamedRequest
from engine.jobs.submitting import Submission
from engine.keys import NewKey
from engine.paths import Home
from engine.resources import Device
from engine.settings import Settings
from engine.sizes import Disk
from engine.transfer.signing import Signer
from engine.transfer.uploads import Uploads, Version
from engine.usage import Overview, Usage
from store import NotFound, Store, StoreError, memory_peaks, selecting, states, telemetry
from store import catalog as entries
from store import jobs as job_rows
from store import keys as key_rows
from store.catalog import BaseModel, Dataset, Model
from store.jobs import Event, Job
from store.keys import Key
from store.telemetry import OWN, Ahead, Checkpoint, LogLine, Point
from store.uploads import Upload

if TYPE_CHECKING:
    from engine.data.inspection import Inspection
    from engine.doctor.finding import Finding
    from engine.plans.advice import Advice
    from engine.plans.planning import MemoryReport
    from engine.pricing import Estimate
    from engine.running.workers import Process, Worker

__all__ = [
    "OWN",
    "AnyModel",
    "BaseModel",
    "Checkpoint",
    "Dataset",
    "Dependents",
    "Device",
    "Disk",
    "Event",
    "Job",
    "Key",
    "Lineage",
    "LogLine",
    "Model",
    "NamedRequest",
    "NewKey",
    "NotFound",
    "Overview",
    "Point",
    "Service",
    "StoreError",
    "Submission",
    "Thinned",
    "Upload",
    "Usage",
    "Version",
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
        self._curves = Curves(self.store)
        if not self.read_only:
            catalog.seed_starter(self.store, clock())
        self.signer = Signer(self.home.signing_key, clock)
        most = int(self.settings.max_upload_gb * 1000**3)
        self.uploads = Uploads(self.store, self.home, most_bytes=most, clock=clock, new_id=new_id)

    def close(self) -> None:
        """Stop what is processed here and close the store's connections."""
        self.uploads.close()
        self.store.close()

    def version(self) -> int:
        """Return a number that changes, for this thread, whenever anyone committed to the store."""
        return int(self.store.read().execute("PRAGMA data_version").fetchone()[0])

    # Jobs ---------------------------------------------------------------------------------------------------------

    def submit(self, payload: Mapping[str, Any], *, careful: bool = False, digest: str | None = None) -> Submission:
        """Queue a job. The same idempotency key with the same payload, or `digest` of one, returns the same job.

        `payload` is a request of the fusion dialect; models and datasets may be named by id or by name. A learning
        rate far above the recommended one is put into the job's history; where `careful`, one that diverges is refused.
        Raises InvalidRequest, UnknownReference, KeyReused (with another payload), NoSpace, StoreError.
        """
        now, new_id = self._clock(), self._new_id
        return submitting.submit(self.store, self.home, payload, careful=careful, digest=digest, now=now, new_id=new_id)

    def submit_named(self, request: NamedRequest, *, key: str | None = None) -> Submission:
        """Queue the job of a request that names its model and data as the second dialect does; see `submit`."""
        return resolving.submit(self.store.read(), request, key or self._new_id(), self.submit)

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

    def jobs(self, *, status: str | None = None, **wanted: Any) -> list[Job]:
        """Return jobs, newest first; `wanted`: `states`, `project_id`, `limit`, `offset` of `store.jobs.newest`."""
        return job_rows.newest(self.store.read(), state=status, **wanted)

    def total_jobs(self, **wanted: Any) -> int:
        """Return how many jobs there are of these `states` and this `project_id`, where they are given."""
        return selecting.total(self.store.read(), **wanted)

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

    def points_ahead(self, job_id: str, *, step: int, aside: float, most: int) -> Ahead:
        """Return about `most` points behind a place; see `telemetry.points_ahead`."""
        return telemetry.points_ahead(self.store.read(), job_id, step=step, aside=aside, most=most)

    def latest_step(self, job_id: str) -> int:
        """Return the highest of a job's own steps with a point, or -1; see `telemetry.latest_step`."""
        return telemetry.latest_step(self.store.read(), job_id)

    def thinned(self, job_id: str, *, since_step: int = -1, most: int) -> Thinned:
        """Return points newer than `since_step`, `most` of them at most, spikes included. Raises NotFound."""
        return self._curves.thin(job_id, since_step=since_step, most=most)

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

    def results(self, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return what each of these jobs that has a result reported, by its id."""
        return telemetry.results(self.store.read(), job_ids)

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Return a job's checkpoints, oldest first."""
        return telemetry.checkpoints(self.store.read(), job_id)

    def pin_checkpoint(self, job_id: str, step: int, pinned: bool = True) -> Checkpoint:
        """Keep a checkpoint for good, or no longer; one that is pinned goes only when its job is deleted.

        Raises NotFound; Conflict where it is removed or damaged; NoSpace, DiskFailed; StoreReadOnly, StoreBusy,
        StoreFull. What is refused leaves no mark that was not there before.
        """
        return control.pin_checkpoint(self.store, job_id, step, pinned)

    def cancel(self, job_id: str) -> Job:
        """End a queued job at once; ask a running one to finish its step, save and stop.

        Raises NotFound; Conflict when the job is finished already.
        """
        return control.cancel(self.store, job_id, now=self._clock())

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again; it goes on from its newest checkpoint.

        One that starts after another job waits for that one again, where it is not completed. Raises NotFound;
        Conflict when the job is neither failed nor cancelled, or its model, its dataset, its checkpoint or that other
        job is removed.
        """
        return control.retry(self.store, self.home, job_id, now=self._clock())

    def save_now(self, job_id: str) -> Job:
        """Ask a running job for a checkpoint at the end of its step: all steps that it has made by now will be in one.

        A worker that dies before leaves the request to the next one. Raises NotFound; Conflict where nothing runs.
        """
        return control.save_now(self.store, job_id, now=self._clock())

    def edit(self, job_id: str, changes: Mapping[str, Any]) -> Job:
        """Change a job's name, tags or notes, in whatever state it is. Raises NotFound, InvalidRequest."""
        from engine.jobs import editing

        return editing.edit(self.store, job_id, changes, now=self._clock())

    def discard(self, job_id: str) -> Job | None:
        """Remove a job with its telemetry, its checkpoints and the model that it made; return None where it is gone.

        A queued one is cancelled first. One that is worked on is told to stop, returned as it is, and removed by the
        supervisor when its worker is gone. Raises NotFound; Conflict where others wait for it, start from one of its
        checkpoints or read its model.
        """
        return removal.discard(self.store, self.home, job_id, now=self._clock())

    def delete(self, job_id: str) -> None:
        """Remove a finished job with its telemetry and checkpoints, pinned ones too; the model it made stays.

        Raises NotFound; Conflict while the job is not finished, others wait for it or start from its checkpoints.
        """
        removal.delete(self.store, self.home, job_id, now=self._clock())

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

    def titles(self, kind: type[BaseModel | Model | Dataset], ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Return the name and version of each of these entries that is there, by its id."""
        return entries.titles(self.store.read(), kind, ids)

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

    def add_model(
        self, source: str, name: str, progress: Progress = silent, *, stopped: Callable[[], bool] = lambda: False
    ) -> BaseModel:
        """Import a model: a folder, a GGUF file or a hub name; `stopped` says whether to give up.

        Raises InvalidData, NoSpace, InvalidRequest.
        """
        python, now = self.settings.trainer_python, self._clock()
        return catalog.add_model(
            self.store, self.home, source, name, now=now, progress=progress, python=python, stopped=stopped
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

    def dependents(self, model: AnyModel) -> Dependents:
        """Return what needs a model, by name: runs that have not ended, runs that ended badly, models made from it."""
        return lineage.dependents(self.store.read(), model)

    def size_of(self, entry: AnyModel, stopped: Callable[[], bool] = lambda: False) -> int:
        """Return the bytes of a model's files, 0 where they are gone; takes long for many files."""
        return sizes.of_folder(Path(entry.path), stopped)

    def remove_dataset(self, reference: str) -> Dataset:
        """Remove a dataset version. Raises UnknownReference, Conflict."""
        entry = self.dataset(reference)
        catalog.remove(self.store, self.home, entry)
        return entry

    # Machine and access -------------------------------------------------------------------------------------------

    def devices(self) -> list[Device]:
        """Return the devices that jobs run on, with their load."""
        return resources.devices()

    def supervisor(self) -> Process | None:
        """Return the process that carries out the queue, where it runs on this machine."""
        from engine.running import workers

        return workers.supervisor(self.home)

    def workers(self) -> list[Worker]:
        """Return the workers that live."""
        from engine.running import workers

        return workers.live(self.store.read())

    def disk(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[Disk]:
        """Count what the data folder takes, part by part; see `sizes.of_home`. Takes long where there are many files.

        Raises OSError where the folder is gone.
        """
        return sizes.of_home(self.home, stopped)

    def reload_settings(self) -> Settings:
        """Read the settings file anew, for this process. Raises EngineError, and then keeps those from before."""
        self.settings = settings.load()
        return self.settings

    def examine(
        self, tell: Callable[[str], object] = lambda _: None, *, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Finding]:
        """Look for what may be wrong here, and give each finding when it is made; takes seconds. Changes nothing."""
        from engine.doctor import examination, finding

        try:
            config, error = settings.load(), ""
        except EngineError as failed:
            config, error = self.settings, str(failed)
        return examination.examine(finding.Machine(self.home, config, error, tell=tell, stopped=stopped))

    def token(self) -> str:
        """Return the first API key, making it (all scopes, in a 0600 file) where there is none."""
        return api_keys.first(self.store, self.home, now=self._clock(), new_id=self._new_id)

    def authenticate(self, secret: str) -> Key | None:
        """Return the key with this secret, or None."""
        return key_rows.authenticate(self.store.read(), secret)

    def keys(self) -> list[Key]:
        """Return the live API keys, without their secrets."""
        return key_rows.listing(self.store.read())

    def make_key(self, name: str, scopes: Sequence[str], *, by: Key | None = None) -> NewKey:
        """Make an API key; `by` asks for it (None: a person at the machine). Raises NotAllowed beyond its scopes."""
        return api_keys.make(self.store, name, scopes, by=by, now=self._clock(), new_id=self._new_id())

    def revoke_key(self, key_id: str, *, by: Key | None = None) -> Key:
        """End an API key. Raises NotFound; NotAllowed for one with more scopes than `by` has."""
        return api_keys.revoke(self.store, key_id, by=by, now=self._clock())

    def usage(self, days: int) -> Usage:
        """Return what the last so many UTC days took."""
        rate = self.settings.usd_per_gpu_hour
        return usage.of_days(self.store.read(), days, now=self._clock(), usd_per_gpu_hour=rate)

    def overview(self, days: int) -> Overview:
        """Return what there is, and what the last so many UTC days took."""
        rate = self.settings.usd_per_gpu_hour
        return usage.overview(self.store.read(), days, now=self._clock(), usd_per_gpu_hour=rate)

    def estimate(self, payload: Mapping[str, Any]) -> Estimate:
        """Return what a request would take here, by earlier runs. Raises InvalidRequest, UnknownReference."""
        from engine import pricing

        db = self.store.read()
        return pricing.estimate(db, chains.with_model(db, payload), usd_per_gpu_hour=self.settings.usd_per_gpu_hour)

    def health(self) -> dict[str, Any]:
        """Return what GET /health answers: version, state of the store, number of live workers."""
        working = self.total_jobs(states=sorted(states.ACTIVE))
        store_state = "readonly" if self.read_only or not os.access(self.home.store, os.W_OK) else "ok"
        return {"status": "ok", "version": package_version(), "store": store_state, "workers": working}
