"""Jobs that start from a checkpoint of an earlier one: which it is, who keeps it, and what their worker is told.

The rule: a checkpoint that a job starts from bears that job's mark, which no retention removes, from before the submit
until the worker has made a model of its own of it. That model lies in the new job's run and goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import atomic, catalog, manifest, pins
from engine.errors import Conflict, EngineError, Fault, InvalidRequest, UnknownReference
from engine.order import CHECKPOINTS, Start
from engine.paths import Home
from store import NotFound, Store, StoreError, jobs, states, telemetry
from store.jobs import Job
from store.library import Database
from store.telemetry import Checkpoint

if TYPE_CHECKING:
    from engine.jobs.specs import JobRequest

FIELD = "checkpoint_id"
FINETUNE = "finetune"  # the type of job whose checkpoints others can start from
ORPHANED_SECONDS = 600.0  # a mark's age at which its job is no longer about to be inserted
_HAVE_MODEL = (states.RUNNING, states.UPLOADING)  # what a job is in once it has made a model of its checkpoint


@dataclass(frozen=True)
class Branch:
    """A checkpoint to start from, and the job that made it."""

    checkpoint: Checkpoint
    job: Job


def find(db: Database, checkpoint_id: str) -> Branch:
    """Return the checkpoint with this id as one to start from.

    Raises UnknownReference for an id that is none; InvalidRequest for one that is gone, damaged, about to go with its
    job, or of a job that is no fine-tune.
    """
    checkpoint = telemetry.find_checkpoint(db, checkpoint_id.lower())
    if checkpoint is None:
        raise UnknownReference(f"No checkpoint has the id {checkpoint_id}. See: fusion-tui checkpoints RUN --json")
    job = jobs.get(db, checkpoint.job_id)
    what = f"the checkpoint of step {checkpoint.step} of the job {job.name}"
    if job.type != FINETUNE:
        raise _fault(f"{what} is that of a {job.type} job; only those of finetune jobs can be started from")
    if checkpoint.state != "published":
        raise _fault(f"{what} is {checkpoint.state}. Name one that is published: fusion-tui checkpoints {job.id[:8]}")
    if job.delete_requested:
        raise _fault(f"{what} is about to be deleted with its job. Name one of another job")
    return Branch(checkpoint, job)


def _fault(message: str) -> InvalidRequest:
    return InvalidRequest([Fault((FIELD,), message)])


def with_model(db: Database, request: JobRequest) -> JobRequest:
    """Return a request as one for the model that its checkpoint's job started from. Raises as `find` does."""
    if request.checkpoint_id is None:
        return request
    return request.model_copy(update={"base_model_id": catalog.model_of(find(db, request.checkpoint_id).job)})


@contextmanager
def held(branch: Branch | None, job_id: str) -> Iterator[Callable[[], None]]:
    """Keep a checkpoint from being removed while a job that starts from it is submitted.

    What is yielded is to be called once that job is there; else the checkpoint is kept no longer. Raises
    InvalidRequest where the checkpoint is gone from the disk; NoSpace, DiskFailed.
    """
    kept: list[bool] = []
    directory = Path(branch.checkpoint.path) if branch else None
    if branch and directory:
        with atomic.telling(f"keeping the checkpoint of step {branch.checkpoint.step}", directory):
            try:
                pins.pin(directory, for_job=job_id)
            except FileNotFoundError:
                step, name = branch.checkpoint.step, branch.job.name
                raise _fault(f"the checkpoint of step {step} of the job {name} is gone from the disk") from None
    try:
        yield lambda: kept.append(True)
    finally:
        if directory and not kept:
            with suppress(OSError):  # it is kept for longer than it need be, and the error that led here is the one
                pins.unpin(directory, for_job=job_id)


def let_go(db: Database, job: Job) -> None:
    """Take a job's mark off the checkpoint that it starts from; one that is gone is fine. Raises OSError."""
    checkpoint = telemetry.find_checkpoint(db, job.checkpoint_id) if job.checkpoint_id else None
    if checkpoint:
        pins.unpin(Path(checkpoint.path), for_job=job.id)


def follow(db: Database, job_id: str, step: int, directory: Path) -> None:
    """Mark a checkpoint that was saved again, in this other folder, for those who start from it.

    To be called before its row names that folder, so that no death comes between; the mark on the old one keeps
    nothing that is damaged. One that is removed already is fine: who wanted it is told so at the start. Raises OSError
    on a full disk.
    """
    before = telemetry.checkpoint(db, job_id, step)
    if before is None or before.path == str(directory):
        return
    for job in jobs.branches(db, job_id):
        if job.checkpoint_id == before.id and job.state not in _HAVE_MODEL:
            try:
                pins.pin(directory, for_job=job.id)
            except OSError as error:
                if atomic.is_full(error):
                    raise


def release_orphans(store: Store, home: Home, *, now: float) -> Iterator[None]:
    """Take away the marks of jobs that are not there: their submit died half-way. A young one may be on its way.

    It pauses after each run, for of 10,000 all take seconds.
    """
    for run in home.runs():
        with suppress(OSError, StoreError):  # the next supervisor looks again
            for mark in run.glob(f"attempt-*/{CHECKPOINTS}/step-*/{pins.FOR_JOB}*"):
                job_id = mark.name.removeprefix(pins.FOR_JOB)
                if now - mark.stat().st_mtime > ORPHANED_SECONDS and jobs.name_of(store.read(), job_id) is None:
                    pins.unpin(mark.parent, for_job=job_id)
        yield


def is_made(home: Home, job: Job) -> bool:
    """Say whether a job has a model of its own to start from, and needs the checkpoint no more."""
    return (home.start_model(job.id) / manifest.MANIFEST).exists()


def need_unneeded(db: Database, home: Home, job: Job) -> None:
    """Raise Conflict where an unfinished job has still to start from a checkpoint of this one."""
    waiting = [one.name for one in jobs.branches(db, job.id) if not is_made(home, one)]
    if waiting:
        raise Conflict(
            f"A checkpoint of the job {job.name} is what {', '.join(waiting)} start{'s' * (len(waiting) == 1)} from. "
            f"Cancel {'that one' if len(waiting) == 1 else 'those'} first, or wait for its start."
        )


def need_again(db: Database, home: Home, job: Job) -> None:
    """Raise Conflict where a job cannot be queued again: the checkpoint that it was to start from is gone."""
    if job.checkpoint_id is None or is_made(home, job):
        return
    try:
        find(db, job.checkpoint_id)
    except EngineError as error:
        raise Conflict(f"The job {job.name} cannot be run again: {error}. Submit a new one.") from None


def start_of(db: Database, home: Home, job: Job) -> Start | None:
    """Return what the worker of a job that starts from a checkpoint is told of it; None for any other job.

    Raises EngineError where the checkpoint is gone and no model was made of it.
    """
    if job.checkpoint_id is None:
        return None
    try:
        branch = find(db, job.checkpoint_id)
    except (EngineError, NotFound) as error:
        if not is_made(home, job):
            raise EngineError(f"The job {job.name} cannot start: {error}. Submit it again with another.") from None
        return Start(job.checkpoint_id)
    source = branch.job
    folder = home.start_model(source.id) if source.checkpoint_id else catalog.find_model(db, catalog.model_of(job)).path
    return Start(
        checkpoint_id=job.checkpoint_id,
        job_id=source.id,
        job_name=source.name,
        step=branch.checkpoint.step,
        directory=branch.checkpoint.path,
        model_path=str(folder),
        hyperparams=source.hyperparams,
    )
