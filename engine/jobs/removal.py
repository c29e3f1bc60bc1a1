"""Jobs that go: a finished one that leaves its model, or any one with all that it made.

The rule: what a job made leaves the catalogue first, its files next, its row last. Whoever dies in between leaves a row
that says what is still to be done, and the supervisor does it.
"""

from __future__ import annotations

from engine import atomic, catalog
from engine.errors import Conflict
from engine.jobs import branches, chains, control
from engine.paths import Home
from store import NotFound, Store, asked, jobs
from store import catalog as entries
from store.catalog import Model
from store.jobs import Job
from store.library import Database


def delete(store: Store, home: Home, job_id: str, *, now: float) -> None:
    """Remove a finished job with its telemetry and checkpoints; the model that it made stays. See `Service.delete`."""
    with store.write() as db:
        job = jobs.get(db, job_id)
        if not job.finished:
            raise Conflict(f"The job {job.name} is {job.state}. Cancel it first: fusion-tui cancel {job.id[:8]}")
        _need_unneeded(db, home, job)
        asked.to_go(db, job_id, now=now, keep_model=True)
    carry_out(store, home, job_id, now=now)


def discard(store: Store, home: Home, job_id: str, *, now: float) -> Job | None:
    """Remove a job with all that it made, once nothing works on it. See `Service.discard`."""
    with store.write() as db:
        job = jobs.get(db, job_id)
        _need_unneeded(db, home, job)
        _need_unused(db, _made(db, job))
        control.stop(db, job, now=now)
        asked.to_go(db, job_id, now=now)
        job = jobs.get(db, job_id)
    if not job.finished:
        return job
    carry_out(store, home, job_id, now=now)
    return None


def carry_out(store: Store, home: Home, job_id: str, *, now: float) -> bool:
    """Remove a job that is to go and that nothing works on any more; say whether it is gone.

    It stays, and its history says why, where somebody has come to need it since. Raises OSError, StoreError; what is
    left is then still to be done.
    """
    with store.write() as db:
        try:
            job = jobs.get(db, job_id)
        except NotFound:
            return True  # by another process, which was quicker
        if not (job.finished and job.delete_requested):
            return False
        made = [] if asked.keeps_model(db, job_id) else _made(db, job)
        try:
            _need_unneeded(db, home, job)
            _need_unused(db, made)
        except Conflict as conflict:
            asked.to_stay(db, job_id, str(conflict), now=now)
            return False
        for model in made:
            entries.remove(db, model)
        keeps_model = asked.keeps_model(db, job_id)
    if not keeps_model:
        atomic.remove_tree(home.model(chains.output_id(job_id)))
    _remove_files(store, home, job)
    with store.write() as db:
        jobs.delete(db, job_id)
    return True


def _made(db: Database, job: Job) -> list[Model]:
    return [model for model in entries.models(db) if model.id == chains.output_id(job.id)]


def _need_unneeded(db: Database, home: Home, job: Job) -> None:
    """Raise Conflict where others wait for a job's end, or are to start from one of its checkpoints."""
    chains.need_unawaited(db, job)
    branches.need_unneeded(db, home, job)


def _need_unused(db: Database, made: list[Model]) -> None:
    """Raise Conflict where others use the model that a job made."""
    for model in made:
        catalog.need_unused(db, model)


def _remove_files(store: Store, home: Home, job: Job) -> None:
    branches.let_go(store.read(), job)
    for stage in home.model_stages(chains.output_id(job.id)):
        atomic.remove_tree(stage)
    atomic.remove_tree(home.run(job.id))
