"""What runs need to go on: their newest checkpoints, their models and datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine import manifest
from engine.catalog import AnyModel
from engine.doctor.finding import Finding, Machine
from engine.manifest import Damaged
from store import catalog, states, telemetry
from store import jobs as job_rows
from store.catalog import Dataset
from store.jobs import Job
from store.library import Database
from store.telemetry import Checkpoint

RECENT_S = 7 * 86400.0
ENDED_LOOKED_AT = 50  # a checkpoint may be large, and hashing a week of them takes long


def _newest(db: Database, job: Job) -> Checkpoint | None:
    standing = [one for one in telemetry.checkpoints(db, job.id) if one.state == "published"]
    return standing[-1] if standing else None


def _concerned(db: Database, now: float) -> tuple[list[Job], list[Job]]:
    """Return the runs that may go on from a checkpoint: unfinished ones, all of them, and those that ended of late."""
    jobs = job_rows.newest(db)
    recent = [job for job in jobs if job.finished and now - (job.finished_at or 0.0) < RECENT_S]
    return [job for job in jobs if not job.finished], recent


def checkpoints(machine: Machine) -> Iterator[Finding]:
    """Verify the newest checkpoint of each unfinished or recent run by the hashes of its manifest."""
    with machine.store() as db:
        unfinished, recent = _concerned(db, machine.clock()) if db else ([], [])
        jobs = unfinished + recent[:ENDED_LOOKED_AT]
        newest = [(job, one) for job in jobs if (one := _newest(db, job))] if db else []
    sound = 0
    for number, (job, checkpoint) in enumerate(newest, start=1):
        machine.tell(f"verifying checkpoint {number} of {len(newest)}")
        try:
            manifest.verify(Path(checkpoint.path))
            sound += 1
        except Damaged as error:
            with machine.store() as db:
                if db is None or _newest(db, job) != checkpoint:
                    continue  # its worker went on meanwhile, and has another
            yield _damaged(job, checkpoint, error)
    words = f"{sound} verified: the newest of each unfinished or recent run that has any"
    if left := len(recent[ENDED_LOOKED_AT:]):
        words += f"; not looked at: {left} more that ended within a week"
    yield Finding("checkpoints", "ok", words)


def _damaged(job: Job, checkpoint: Checkpoint, error: Damaged) -> Finding:
    words = f"{job.name}, step {checkpoint.step}: {Path(checkpoint.path).parent / str(error)}"
    if job.state == states.COMPLETED:
        return Finding("checkpoints", "warning", words, "The run is complete and needs it no more; check the disk.")
    remedy = "Check the disk. The run sets it aside by itself and goes on from the one before, or anew where none is."
    return Finding("checkpoints", "error", words, remedy)


def entries(machine: Machine) -> Iterator[Finding]:
    """Look whether the files of every model and dataset are there."""
    with machine.store() as db:
        if db is None:
            yield Finding("catalogue", "ok", "nothing is in it yet")
            return
        listed: list[tuple[str, AnyModel | Dataset]] = []
        listed += [("model", one) for one in catalog.base_models(db)] + [("model", one) for one in catalog.models(db)]
        listed += [("dataset", one) for one in catalog.datasets(db)]
        waiting = [job for job in job_rows.newest(db) if not job.finished]
    used = {
        one
        for job in waiting
        for one in (job.base_model_id, job.source_model_id, job.dataset_id, *job.more_dataset_ids)
    }
    gone = [(kind, one) for kind, one in listed if not Path(one.path).exists()]
    for kind, one in gone:
        needed = one.id in used
        words = f"the files of the {kind} {one.name} v{one.version} are gone from {one.path}"
        words += "; a run waits for them" if needed else ""
        remedy = f"Bring them back, or add it again and remove this one: fusion-tui {kind}s rm {one.id[:8]}"
        yield Finding("catalogue", "error" if needed else "warning", words, remedy)
    yield Finding("catalogue", "ok", f"{len(listed) - len(gone)} of {len(listed)} models and datasets have their files")
