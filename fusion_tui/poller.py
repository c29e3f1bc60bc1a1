"""Asks the service "anything newer?" in one thread and posts what changed.

The rule: no screen asks the service about runs; they show what this thread posted last. An unchanged store costs one
PRAGMA, and a look at each live worker's process, and posts nothing.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from textual.message import Message

from engine.errors import EngineError
from engine.running import evidence
from engine.running.evidence import Evidence
from engine.service import OWN, Job, NotFound, Point, Service, StoreError, states
from fusion_tui.messages import (
    LOG_LINES,
    ComparedRun,
    Comparison,
    ComparisonChanged,
    Overview,
    OverviewChanged,
    RunChanged,
    RunGone,
    RunView,
    Supervision,
)
from store.attempts import Attempt

INTERVAL_S = 0.4
DEVICES_EVERY_S = 2.0
JOBS_SHOWN = 500
RUNS_KEPT = 8
# Of each run that is compared, spikes included. Of a million points (measured on two busy cores) they are ready after
# 1.4 s, and 0.03 s after points were added; eight such curves are traced in 13 ms.
COMPARED_POINTS = 1000
# How long a look waits for a locked store: less than the store's own patience, so that the app can say so and be left.
PATIENCE_S = 0.5


@dataclass(frozen=True)
class _Curve:
    """A run's points with what they depend on: rows after a resume's step are deleted and written again."""

    points: tuple[Point, ...] = ()
    fence: int = -1
    resumes: int = 0


class Poller:
    """The thread's state. `post` must be safe to call from any thread."""

    def __init__(
        self,
        service: Service,
        post: Callable[[Message], object],
        supervision: Callable[[], Supervision],
        *,
        interval: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._post = post
        self._supervision = supervision
        self._interval = interval
        self._clock = clock
        self._wake = threading.Event()
        self._stopped = False
        self._watched: str | None = None
        self._wanted: tuple[str, ...] = ()  # the runs that are compared
        self._comparison = Comparison()
        self._posted: str | None = None
        self._seen: tuple[int, str | None, tuple[str, ...]] | None = None
        self._machine_at = float("-inf")
        self._overview = Overview()
        self._sources: dict[str, tuple[str, int, int]] = {}
        self._views: OrderedDict[str, RunView] = OrderedDict()
        self._curves: dict[tuple[str, tuple[str, ...]], _Curve] = {}
        self._claims: dict[str, Attempt] = {}
        self._errors: dict[str, str] = {}  # of each look, until the same look succeeds
        self._file: tuple[int, int] | None = None  # which file the store is, that another in its place is noticed

    def watch(self, job_id: str | None) -> None:
        """Follow this run in full from now on."""
        self._watched = job_id
        self._wake.set()

    def compare(self, job_ids: tuple[str, ...]) -> None:
        """Follow these runs from now on, each in few points; none, to end that."""
        self._wanted = job_ids
        self._wake.set()

    def wake(self) -> None:
        """Look at once: something was just done."""
        self._seen, self._machine_at = None, float("-inf")
        self._wake.set()

    def stop(self) -> None:
        """End the thread after its present round."""
        self._stopped = True
        self._wake.set()

    def run(self) -> None:
        """Poll until stopped."""
        while not self._stopped:
            self._wake.clear()
            self.poll()
            self._wake.wait(self._interval)

    def poll(self) -> None:
        """Look once, and post what differs from what was posted before. Never raises."""
        self._look("store", self._poll_store)
        if self._clock() - self._machine_at >= DEVICES_EVERY_S:
            self._machine_at = self._clock()
            self._look("machine", self._poll_machine)
        self._look("workers", self._poll_workers)

    def _look(self, name: str, look: Callable[[], None]) -> None:
        """Look at one thing: its error stands until the same look succeeds, whatever the others see."""
        try:
            look()
            error = ""
        except (StoreError, EngineError) as failed:
            error = str(failed)
        except Exception as failed:  # noqa: BLE001  (the thread's edge: a dead poller would freeze every screen)
            error = f"{type(failed).__name__}: {failed}"
        if error and name == "store":
            self._seen = None
        if not self._stopped:
            self._errors[name] = error
            self._publish(replace(self._overview, error=" ".join(filter(None, self._errors.values()))))

    def _publish(self, overview: Overview) -> None:
        if overview != self._overview:
            self._overview = overview
            self._post(OverviewChanged(overview))

    # The machine --------------------------------------------------------------------------------------------------

    def _poll_machine(self) -> None:
        # First, for a driver that does not answer says nothing of who supervises.
        self._publish(replace(self._overview, supervision=self._supervision()))
        self._publish(replace(self._overview, devices=tuple(self._service.devices())))

    # The runs -----------------------------------------------------------------------------------------------------

    def _poll_store(self) -> None:
        self._need_file()
        watched, wanted = self._watched, self._wanted
        seen = (self._service.version(), watched, wanted)
        if seen == self._seen:
            return
        # Taken before the rows are read: what is committed meanwhile is read again in the next round.
        self._seen = seen
        self._publish(self._read_overview())
        if watched:
            self._read_run(watched)
        self._read_compared(wanted)

    def _need_file(self) -> None:
        """Raise EngineError where the store's file is gone: through its open descriptor old runs would seem to live."""
        path = self._service.home.store
        try:
            status = path.stat()
        except OSError as error:
            raise EngineError(
                f"The data folder {path.parent} is gone ({error.strerror}). Bring it back, or leave with q."
            ) from None
        if self._file is None:
            self._service.store.read().execute(f"PRAGMA busy_timeout={int(PATIENCE_S * 1000)}")
        file = (status.st_dev, status.st_ino)
        self._file = self._file or file
        if file != self._file:
            raise EngineError(f"The job store {path} is another file than before. Leave with q and open the app again.")

    def _read_overview(self) -> Overview:
        jobs = tuple(self._service.jobs(limit=JOBS_SHOWN))
        self._claims = evidence.claims(self._service.store.read())
        return replace(
            self._overview,
            jobs=jobs,
            evidence=self._evidence(jobs),
            latest=self._latest(jobs),
            names=self._names(jobs),
            counts=self._service.job_counts(),
            loaded=True,
        )

    def _latest(self, jobs: tuple[Job, ...]) -> dict[str, Point]:
        """Return each run's newest point; asked again only where the run works or its row changed."""
        sources = {job.id: (job.state, job.step, job.fence) for job in jobs}
        stale = [job.id for job in jobs if job.state in states.ACTIVE or self._sources.get(job.id) != sources[job.id]]
        kept = {job_id: point for job_id, point in self._overview.latest.items() if job_id in sources}
        for job_id in stale:
            kept.pop(job_id, None)
        found = kept | self._service.latest_points(stale)
        self._sources = sources
        return found

    def _names(self, jobs: tuple[Job, ...]) -> dict[str, str]:
        """Return the names of what runs were made from; asked anew each time, for an entry may be removed."""
        service = self._service
        known = {model.id: model.name for model in service.base_models()}
        known |= {model.id: model.name for model in service.models()}
        known |= {dataset.id: dataset.name for dataset in service.datasets()}
        used = {one for job in jobs for one in (job.base_model_id, job.source_model_id, job.dataset_id) if one}
        used |= {one for job in jobs for one in job.more_dataset_ids}
        names = {one: known.get(one) or service.name_of(one) for one in used}
        titles = {job.id: job.name for job in jobs}
        chained = (job for job in jobs if job.after_id)
        return names | {
            job.after_id: titles.get(job.after_id) or service.predecessor_of(job) or "–"
            for job in chained
            if job.after_id
        }

    # The workers --------------------------------------------------------------------------------------------------

    def _evidence(self, jobs: tuple[Job, ...]) -> dict[str, Evidence]:
        """Return what speaks for each run that the store calls worked on; who supervises is asked where it counts."""
        active = [job for job in jobs if job.state in states.ACTIVE]
        found = {job.id: evidence.of(job, self._claims.get(job.id), supervised=False) for job in active}
        if "lost" in found.values() and self._supervision().running:
            found = {job.id: evidence.of(job, self._claims.get(job.id), supervised=True) for job in active}
        return {job_id: one for job_id, one in found.items() if one}

    def _poll_workers(self) -> None:
        """A worker's end changes nothing in the store while nobody supervises: look at the processes themselves."""
        found = self._evidence(self._overview.jobs)
        self._publish(replace(self._overview, evidence=found))
        for job_id, view in self._views.items():
            seen = found.get(job_id)
            if view.evidence != seen:
                self._views[job_id] = replace(view, evidence=seen)
                if job_id == self._watched:
                    self._post(RunChanged(self._views[job_id]))

    # The watched run ----------------------------------------------------------------------------------------------

    def _read_run(self, job_id: str) -> None:
        before = self._views.get(job_id)
        try:
            view = self._read_view(job_id, before)
        except NotFound:
            self._forget(job_id)
            self._post(RunGone(job_id))
            return
        self._views[job_id] = view
        self._views.move_to_end(job_id)
        while len(self._views) > RUNS_KEPT:
            self._forget(next(iter(self._views)))
        if view != before or job_id != self._posted:
            self._posted = job_id
            self._post(RunChanged(view))

    def _read_compared(self, wanted: tuple[str, ...]) -> None:
        """Read runs that are compared, post after each that is new, and leave off when others are wanted.

        Of a run of a million points the first look takes seconds, each later one reads what is new.
        """
        known = {run.job.id: run for run in self._comparison.runs if run.job.id in wanted}
        gone: list[str] = []
        for job_id in wanted:
            if self._stopped or self._wanted != wanted:
                return
            new = job_id not in known
            try:
                known[job_id] = self._read_compared_run(job_id)
            except NotFound:
                known.pop(job_id, None)
                gone.append(job_id)
            if new:
                self._tell_compared(wanted, known, gone)
        self._tell_compared(wanted, known, gone)

    def _tell_compared(self, wanted: tuple[str, ...], known: dict[str, ComparedRun], gone: list[str]) -> None:
        runs = tuple(known[job_id] for job_id in wanted if job_id in known)
        comparison = Comparison(wanted, runs, tuple(gone))
        if comparison != self._comparison:
            self._comparison = comparison
            self._post(ComparisonChanged(comparison))

    def _read_compared_run(self, job_id: str) -> ComparedRun:
        job = self._service.job(job_id)
        thinned = self._service.thinned(job_id, most=COMPARED_POINTS)
        points = tuple(point for point in thinned.points if point.phase in OWN)
        before = next((run.points for run in self._comparison.runs if run.job.id == job_id), ())
        return ComparedRun(
            job=job,
            points=before if before == points else points,  # the same object is not drawn anew
            result=self._service.result(job_id),
            model=self._overview.name(job.source_model_id or job.base_model_id),
            dataset=", ".join(self._overview.name(one) for one in (job.dataset_id, *job.more_dataset_ids)),
        )

    def _forget(self, job_id: str) -> None:
        self._views.pop(job_id, None)
        for key in [key for key in self._curves if key[0] == job_id]:
            del self._curves[key]

    def _read_view(self, job_id: str, before: RunView | None) -> RunView:
        job = self._service.job(job_id)
        old = before or RunView(job)
        events = old.events + tuple(self._service.events(job_id, after=old.events[-1].id if old.events else 0))
        logs = old.logs + tuple(self._service.logs(job_id, since=old.logs[-1].seq if old.logs else 0))
        checkpoints = tuple(self._service.checkpoints(job_id))
        resumes = sum(event.kind == "resume" for event in events)
        return RunView(
            job=job,
            points=self._points(job, resumes, OWN),
            aside=self._points(job, resumes, _aside(job)),
            logs=logs[-LOG_LINES:] if len(logs) > LOG_LINES else logs,
            events=events,
            checkpoints=old.checkpoints if checkpoints == old.checkpoints else checkpoints,
            result=self._service.result(job_id),
            model=self._overview.name(job.source_model_id or job.base_model_id),
            dataset=", ".join(self._overview.name(one) for one in (job.dataset_id, *job.more_dataset_ids)),
            evidence=self._overview.evidence.get(job_id),
            after=self._overview.after(job),
        )

    def _points(self, job: Job, resumes: int, phases: tuple[str, ...]) -> tuple[Point, ...]:
        """Return the whole curve of some phases, reading only its end unless the run was resumed since."""
        curve = self._curves.get((job.id, phases), _Curve())
        known = curve.points
        cut = phases == OWN and self._was_cut(job.id, known)
        if cut or (curve.fence, curve.resumes) != (job.fence, resumes):
            known = ()
        # The last step is read again: its evaluation and its training point may come in different transactions.
        since = known[-1].step - 1 if known else -1
        read = (point for phase in phases for point in self._service.points(job.id, since_step=since, phase=phase))
        new = tuple(sorted(read, key=lambda point: (point.step, point.phase)))
        tail = [point for point in known[-len(phases) :] if point.step > since]
        if tuple(tail) != new:
            known = known[: len(known) - len(tail)] + new
        self._curves[job.id, phases] = _Curve(known, job.fence, resumes)
        return known

    def _was_cut(self, job_id: str, known: tuple[Point, ...]) -> bool:
        return bool(known) and self._service.latest_step(job_id) < known[-1].step


def _aside(job: Job) -> tuple[str, ...]:
    """Return the phases beside its own that are drawn of a run; of most none, for asking costs a look at every row."""
    if job.type == "contract":
        return ("prune",)
    return ("ungrown", "ungrown_eval") if job.hyperparams.get("compare_ungrown") else ()
