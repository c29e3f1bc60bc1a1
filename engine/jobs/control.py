"""What users ask of a job while it is queued, at work or over: to stop, to go on, to save now, to keep a checkpoint.

The rule: nothing here touches a process. What a worker has to do is a flag in its job's row; the supervisor tells it.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine import atomic, pins
from engine.errors import Conflict
from engine.jobs import chains
from engine.paths import Home
from store import NotFound, Store, asked, jobs, states, telemetry
from store.jobs import Job
from store.library import Database
from store.telemetry import Checkpoint

# A worker that is in one of these has reached its loop, or is about to.
SAVING = (states.RUNNING, states.CHECKPOINTING)


def cancel(store: Store, job_id: str, *, now: float) -> Job:
    """End a queued job, or ask a running one to stop; see `Service.cancel`."""
    with store.write() as db:
        job = jobs.get(db, job_id)
        if job.finished:
            raise Conflict(f"The job {job.name} is {job.state} already.")
        stop(db, job, now=now)
        return jobs.get(db, job_id)


def stop(db: Database, job: Job, *, now: float) -> None:
    """Cancel a job that nothing works on; of one that is worked on, ask that it stops. A finished one is left alone."""
    if job.state in (states.QUEUED, states.PREEMPTED):
        columns: dict[str, Any] = {"finished_at": now, "hold": None, "save_requested": 0}
        jobs.transition(db, job.id, states.CANCELLED, fence=job.fence, now=now, **columns)
    elif not job.finished and not job.stop_requested:
        jobs.update(db, job.id, stop_requested=1)
        jobs.add_event(db, job.id, "stop_requested", {}, now=now)


def retry(store: Store, home: Home, job_id: str, *, now: float) -> Job:
    """Queue a failed or cancelled job again; see `Service.retry`."""
    with store.write() as db:
        job = jobs.get(db, job_id)
        cleared: dict[str, Any] = {
            "error": None,
            "finished_at": None,
            "stop_requested": 0,
            "not_before": 0.0,
            "activity": "",
            "done": None,
            "hold": jobs.hold_after(db, job.after_id),
        }
        if states.QUEUED in states.TRANSITIONS[job.state]:
            chains.need_again(db, home, job)
        why = {"why": "retry"}
        if not jobs.transition(db, job_id, states.QUEUED, fence=job.fence, now=now, detail=why, **cleared):
            raise Conflict(f"The job {job.name} is {job.state}; only failed and cancelled jobs can be retried.")
        return jobs.get(db, job_id)


def save_now(store: Store, job_id: str, *, now: float) -> Job:
    """Ask a job's worker for a checkpoint; see `Service.save_now`."""
    with store.write() as db:
        job = jobs.get(db, job_id)
        if job.state not in SAVING:
            raise Conflict(f"The job {job.name} is {job.state}; only one that is running can save now.")
        if job.stop_requested:
            raise Conflict(f"The job {job.name} is stopping, and saves when it does.")
        if not job.total_steps:
            raise Conflict(f"The job {job.name} makes no steps to save: it keeps each of its phases as it ends.")
        asked.to_save(db, job_id, now=now)
        return jobs.get(db, job_id)


def pin_checkpoint(store: Store, job_id: str, step: int, pinned: bool) -> Checkpoint:
    """Keep a checkpoint for good, or no longer; see `Service.pin_checkpoint`."""
    store.need_writable()
    name = jobs.get(store.read(), job_id).name
    found = telemetry.checkpoint(store.read(), job_id, step)
    if found is None:
        raise NotFound(f"The job {name} has no checkpoint of step {step}. See: fusion-tui checkpoints {job_id[:8]}")
    if found.state != "published":
        raise Conflict(f"The checkpoint of step {step} of the job {name} is {found.state}; it cannot be pinned.")
    directory = Path(found.path)
    # The mark is what keeps it: set before the store says so, and taken away after.
    with atomic.telling(f"pinning the checkpoint of step {step}", directory):
        marked = pins.is_pinned_by_user(directory)
        try:
            if pinned:
                pins.pin(directory)
            with store.write() as db:
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
