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

# A worker that dies so often in a row with no new checkpoint would die there for ever.
DEATHS_AT_MOST = 5
STARTS_AT_MOST = 20
DISK_FULL_WAIT_SECONDS = 30.0
STDERR_TAIL = 4096


def settle(db: Database, attempt: Attempt, now: float) -> str:
    """Close an attempt whose process is gone and move its job on; return the job's new state."""
    job = jobs.get(db, attempt.job_id)
    detail = json.loads(attempt.detail or "{}")
    outcome = attempt.outcome or "lost"
    error, cause = _text(detail.get("error")), detail.get("cause")
    if outcome == "lost":
        words = _keep_last_words(db, attempt, now)
        if deaths_in_a_row(attempts.of_job(db, job.id), job) >= DEATHS_AT_MOST:
            # Said as a failure, so that a user's retry has all its tries again.
            outcome = "failed"
            error = (
                f"The worker died {DEATHS_AT_MOST} times in a row with no new checkpoint, last at step {job.step}"
                f"{': ' + words if words else '; it may run out of memory'}. "
                "See its log; lower seq_len, batch_size or save_steps, then retry."
            )
    if job.stop_requested and outcome in ("lost", "preempted"):
        outcome = "cancelled"
    attempts.close(db, job.id, attempt.fence, outcome=outcome, detail=attempt.detail, now=now)
    if outcome == "completed":
        _make_good_lost_states(db, job, now)
        return _finish(db, job, states.COMPLETED, now)
    if outcome == "failed":
        return _finish(db, job, states.FAILED, now, error=error or "The worker failed without saying why.")
    if outcome == "cancelled":
        return _finish(db, job, states.CANCELLED, now)
    if cause == "disk_full":
        return _requeue(db, job, now, why="disk_full", hold=error, wait=DISK_FULL_WAIT_SECONDS)
    retries = job.retries + 1
    return _requeue(db, job, now, why=outcome, retries=retries, wait=_backoff(db, job) if outcome == "lost" else 0.0)


def _text(value: str | None) -> str | None:
    """Return text that SQLite can hold: half a surrogate pair, which JSON can spell, becomes a question mark."""
    return None if value is None else value.encode(errors="replace").decode()


def deaths_in_a_row(history: Sequence[Attempt], job: Job) -> int:
    """Return how many of the newest attempts were lost after beginning at what is still the newest checkpoint."""
    count = 0
    for attempt in reversed(history):
        if attempt.outcome not in (None, "lost") or attempt.start_step != job.last_checkpoint_step:
            break
        count += 1
    return count


def _backoff(db: Database, job: Job) -> float:
    """Return the seconds to wait: none after the first death, then 1, 3, 7 … 60 with no checkpoint between."""
    deaths = deaths_in_a_row(attempts.of_job(db, job.id), job)
    return float(min(60.0, 2.0 ** max(deaths - 1, 0) - 1))


def _make_good_lost_states(db: Database, job: Job, now: float) -> None:
    """Walk a completed job through states whose journal lines were damaged: it was in them."""
    for state in (states.STAGING, states.RUNNING, states.UPLOADING):
        jobs.transition(db, job.id, state, fence=job.fence, now=now)


def abandon(db: Database, attempt: Attempt, now: float, *, wait: float = 0.0) -> None:
    """Close an attempt whose worker was never known: its gate stays shut, so it did nothing. Costs no retry."""
    job = jobs.get(db, attempt.job_id)
    attempts.close(db, job.id, attempt.fence, outcome="unstarted", detail=None, now=now)
    newest = attempts.of_job(db, job.id)[-STARTS_AT_MOST:]
    if job.stop_requested:
        _finish(db, job, states.CANCELLED, now)
    elif len(newest) == STARTS_AT_MOST and all(attempt.outcome == "unstarted" for attempt in newest):
        error = f"No worker could be started in {STARTS_AT_MOST} tries. See the supervisor's log; check trainer_python."
        _finish(db, job, states.FAILED, now, error=error)
    else:
        _requeue(db, job, now, why="unstarted", wait=wait)


def _finish(db: Database, job: Job, state: str, now: float, error: str | None = None) -> str:
    columns: dict[str, Any] = {"finished_at": now, "activity": "", "eta_s": None, "error": error}
    detail = {"error": error} if error else {}
    jobs.transition(db, job.id, state, fence=job.fence, now=now, detail=detail, **columns)
    return state


def _requeue(
    db: Database,
    job: Job,
    now: float,
    *,
    why: str,
    retries: int | None = None,
    hold: str | None = None,
    wait: float = 0.0,
) -> str:
    retries = job.retries if retries is None else retries
    jobs.transition(db, job.id, states.PREEMPTED, fence=job.fence, now=now, detail={"why": why})
    columns: dict[str, Any] = {
        "retries": retries,
        "not_before": now + wait,
        "hold": hold,
        "activity": "",
        "eta_s": None,
    }
    jobs.transition(db, job.id, states.QUEUED, fence=job.fence, now=now, detail={"why": why}, **columns)
    return states.QUEUED


def _keep_last_words(db: Database, attempt: Attempt, now: float) -> str:
    """Add the end of a lost worker's error output to the job's log, and return its last line: all there is to go by."""
    try:
        data = (Path(attempt.directory) / "stderr.log").read_bytes()[-STDERR_TAIL:]
    except OSError:
        return ""
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()][-20:]
    telemetry.add_log_lines(db, attempt.job_id, [(now, "error", line) for line in lines])
    return lines[-1].strip() if lines else ""
