"""What becomes of a job when its worker's process is gone.

The rule: the state that follows is decided here alone, from what the worker last said and why it ended. A lost
worker costs a retry and no work beyond the last checkpoint; it is not an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from store import attempts, jobs, states, telemetry
from store.attempts import Attempt
from store.jobs import Job
from store.library import Database

# A worker that dies so often in a row at one step, with no new checkpoint, would die there for ever.
SAME_STEP_DEATHS = 5
STDERR_TAIL = 4096


def settle(db: Database, attempt: Attempt, now: float) -> str:
    """Close an attempt whose process is gone and move its job on; return the job's new state."""
    job = jobs.get(db, attempt.job_id)
    detail = json.loads(attempt.detail or "{}")
    outcome = attempt.outcome or "lost"
    error, cause = detail.get("error"), detail.get("cause")
    if outcome == "lost":
        _keep_last_words(db, attempt, now)
    attempts.close(db, job.id, attempt.fence, outcome=outcome, detail=attempt.detail, now=now)
    if outcome == "completed":
        return _finish(db, job, states.COMPLETED, now)
    if outcome == "failed":
        return _finish(db, job, states.FAILED, now, error=error or "The worker failed without saying why.")
    if job.stop_requested:
        return _finish(db, job, states.CANCELLED, now)
    if cause == "disk_full":
        return _requeue(db, job, now, why="disk_full", hold=error)
    if outcome == "lost" and (count := deaths_at_same_step(attempts.of_job(db, job.id), job)) >= SAME_STEP_DEATHS:
        message = (
            f"The worker died {count} times in a row at step {job.step} without saying why; it may run out of memory. "
            "See its log; lower seq_len or batch_size, then retry."
        )
        return _finish(db, job, states.FAILED, now, error=message)
    return _requeue(db, job, now, why=outcome, retries=job.retries + 1)


def deaths_at_same_step(history: Sequence[Attempt], job: Job) -> int:
    """Return how many of the newest attempts in a row were lost with no checkpoint between them."""
    count = 0
    for attempt in reversed(history):
        if attempt.outcome not in (None, "lost") or attempt.start_step != job.last_checkpoint_step:
            break
        # Where each died is known for the last alone; all began at the checkpoint that is still the newest.
        count += 1
    return count


def abandon(db: Database, attempt: Attempt, now: float, *, wait: float = 0.0) -> None:
    """Close an attempt whose worker was never known: its gate stays shut, so it did nothing. Costs no retry."""
    job = jobs.get(db, attempt.job_id)
    attempts.close(db, job.id, attempt.fence, outcome="unstarted", detail=None, now=now)
    if job.stop_requested:
        _finish(db, job, states.CANCELLED, now)
    else:
        _requeue(db, job, now, why="unstarted")
        jobs.update(db, job.id, not_before=now + wait)


def _finish(db: Database, job: Job, state: str, now: float, error: str | None = None) -> str:
    columns: dict[str, Any] = {"finished_at": now, "activity": "", "eta_s": None, "error": error}
    detail = {"error": error} if error else {}
    jobs.transition(db, job.id, state, fence=job.fence, now=now, detail=detail, **columns)
    return state


def _requeue(
    db: Database, job: Job, now: float, *, why: str, retries: int | None = None, hold: str | None = None
) -> str:
    retries = job.retries if retries is None else retries
    jobs.transition(db, job.id, states.PREEMPTED, fence=job.fence, now=now, detail={"why": why})
    # No wait after the first death; 1, 3, 7 … 60 s where deaths repeat without a checkpoint between them.
    again = deaths_at_same_step(attempts.of_job(db, job.id), job)
    wait = min(60.0, 2.0 ** (again - 1) - 1) if why == "lost" and again else 0.0
    columns: dict[str, Any] = {
        "retries": retries,
        "not_before": now + wait,
        "hold": hold,
        "activity": "",
        "eta_s": None,
    }
    jobs.transition(db, job.id, states.QUEUED, fence=job.fence, now=now, detail={"why": why}, **columns)
    return states.QUEUED


def _keep_last_words(db: Database, attempt: Attempt, now: float) -> None:
    """Add the end of a lost worker's error output to the job's log: it may be all there is to go by."""
    try:
        data = (Path(attempt.directory) / "stderr.log").read_bytes()[-STDERR_TAIL:]
    except OSError:
        return
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()][-20:]
    telemetry.add_log_lines(db, attempt.job_id, [(now, "error", line) for line in lines])
