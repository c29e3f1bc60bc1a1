"""What becomes of a job when its worker's process is gone.

The rule: the state that follows is decided here alone, from what the worker last said and why it ended. A lost
worker costs a retry and no work beyond the last checkpoint; it is not an error.

| how the worker ended                                     | what follows                                              |
|----------------------------------------------------------|-----------------------------------------------------------|
| it said: completed                                       | completed                                                 |
| it said: failed (data, NaN, memory after the ladder …)   | fails at once, saying what to change                      |
| it said: preempted (TERM from outside)                   | queued, a retry                                           |
| it said: preempted, for the disk is full                 | held as disk_full, no retry                               |
| its gate never opened                                    | queued, no retry; 20 times in a row fail                  |
| killed from outside, or for lack of memory; unseen       | queued, a retry                                           |
| silent for longer than the user's setting, so ended      | queued, a retry                                           |
| its own fault (segmentation fault, exit without a word)  | queued, a retry; twice at one step: fails as poison       |
| its own fault while the disk is full                     | held as disk_full, no retry                               |

A retry with no new checkpoint since the one before waits longer each time, and the fifth such fails. Where a stop was
asked for, whatever would be queued is cancelled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.order import GATE, NOT_ADMITTED
from engine.running.deaths import Death
from engine.running.stalls import STALLED
from store import attempts, jobs, states, telemetry
from store.attempts import Attempt
from store.jobs import Job
from store.library import Database

# A worker that dies so often in a row with no new checkpoint would die there for ever.
DEATHS_AT_MOST = 5
STARTS_AT_MOST = 20
DISK_FULL_WAIT_SECONDS = 30.0
DISK_FULL = "disk_full"
STDERR_TAIL = 4096
UNSEEN = Death()
_FINAL = {"completed": states.COMPLETED, "failed": states.FAILED, "cancelled": states.CANCELLED}


@dataclass(frozen=True)
class _End:
    """How an attempt ended: its outcome, a cause where there is one, and the words for it."""

    outcome: str
    cause: str | None = None
    error: str | None = None  # what the user is told where this ends the job
    own_fault: bool = False


def settle(db: Database, attempt: Attempt, now: float, death: Death = UNSEEN) -> str:
    """Close an attempt whose process is gone and move its job on; return the job's new state.

    An attempt that is closed, or whose job was claimed again, changes nothing.
    """
    job = jobs.get(db, attempt.job_id)
    if not attempts.is_current(db, attempt.job_id, attempt.fence):
        return job.state
    if _never_began(attempt, death):
        abandon(db, attempt, now, exit_code=death.exit_code)
        return jobs.get(db, job.id).state
    end = _end(db, job, attempt, death, now)
    outcome = "cancelled" if job.stop_requested and end.outcome in ("lost", "preempted") else end.outcome
    said = {"error": end.error, "cause": end.cause, "step": job.step, "own_fault": end.own_fault}
    detail = attempt.detail if attempt.outcome else json.dumps(said)
    attempts.close(db, job.id, attempt.fence, outcome=outcome, detail=detail, now=now, exit_code=death.exit_code)
    if outcome == "completed":
        _make_good_lost_states(db, job, now)
    if outcome in _FINAL:
        error = end.error or "The worker failed without saying why." if outcome == "failed" else None
        return _finish(db, job, _FINAL[outcome], now, error=error)
    if end.cause == DISK_FULL:
        return _requeue(db, job, now, why=DISK_FULL, hold=f"{DISK_FULL}: {end.error}", wait=DISK_FULL_WAIT_SECONDS)
    cause = end.cause if end.outcome == "lost" else None
    return _requeue(db, job, now, why=outcome, cause=cause, retries=job.retries + 1, wait=_backoff(db, job))


def _never_began(attempt: Attempt, death: Death) -> bool:
    """Say whether the worker found its gate shut to the end: then it has done nothing."""
    if attempt.outcome or attempt.journal_seq or attempt.pid is None:
        return False
    return death.exit_code == NOT_ADMITTED or not (attempt.gate_opened or (Path(attempt.directory) / GATE).exists())


def _end(db: Database, job: Job, attempt: Attempt, death: Death, now: float) -> _End:
    """Judge how an attempt ended."""
    detail = json.loads(attempt.detail or "{}")
    error, cause = _text(detail.get("error")), detail.get("cause")
    history = _tries(db, job)
    limited = not job.stop_requested  # what a user stops is cancelled, however it ended before
    too_often = limited and deaths_in_a_row(history, job) >= DEATHS_AT_MOST
    if attempt.outcome == "preempted" and cause != DISK_FULL and too_often:
        return _End("failed", cause, _too_often(job, "ended from outside", "Find out who ends it"))
    if attempt.outcome:
        return _End(attempt.outcome, cause, error)
    words = _keep_last_words(db, attempt, now)
    if cause == STALLED:
        end = _End("lost", "stalled: it was silent for too long")
    elif death.own_fault and death.disk_full:
        return _End("preempted", DISK_FULL, f"no room when the worker ended ({death.words}); it resumes when there is")
    else:
        end = _End("lost", death.words, own_fault=death.own_fault)
    last = f": {words}" if words else ""
    if limited and end.own_fault and _died_here_before(history, job):
        why = (
            f"The worker died twice at step {job.step} with no new checkpoint in between, of its own doing: {end.cause}"
            f"{last}. It would die there again. See its log; change the settings or the data, then retry."
        )
        return _End("failed", end.cause, why, own_fault=True)
    if too_often:
        remedy = "See its log; lower seq_len, batch_size or save_steps"
        # Said as a failure, so that a user's retry has all its tries again.
        return _End("failed", end.cause, _too_often(job, f"{end.cause}{last}", remedy), own_fault=end.own_fault)
    return end


def _too_often(job: Job, how: str, remedy: str) -> str:
    return (
        f"The worker died {DEATHS_AT_MOST} times in a row with no new checkpoint, last at step {job.step}: {how}. "
        f"{remedy}, then retry."
    )


def _text(value: str | None) -> str | None:
    """Return text that SQLite can hold: half a surrogate pair, which JSON can spell, becomes a question mark."""
    return None if value is None else value.encode(errors="replace").decode()


def _tries(db: Database, job: Job) -> list[Attempt]:
    """Return the job's attempts whose workers began."""
    return [attempt for attempt in attempts.of_job(db, job.id) if attempt.outcome != "unstarted"]


def deaths_in_a_row(history: Sequence[Attempt], job: Job) -> int:
    """Return how many of the newest attempts were lost or ended from outside after beginning at what is still the
    newest checkpoint. The newest of all is one of them: call this when it was."""
    count = 0
    for attempt in reversed(history):
        lost = attempt.outcome in (None, "lost", "preempted") and not _for_want_of_room(attempt)
        if not lost or attempt.start_step != job.last_checkpoint_step:
            break
        count += 1
    return count


def _for_want_of_room(attempt: Attempt) -> bool:
    return attempt.outcome == "preempted" and json.loads(attempt.detail or "{}").get("cause") == DISK_FULL


def _died_here_before(history: Sequence[Attempt], job: Job) -> bool:
    """Say whether the attempt before the newest also died at this step, with nothing saved since, of its own doing."""
    if len(history) < 2 or any(attempt.start_step != job.last_checkpoint_step for attempt in history[-2:]):
        return False
    before = json.loads(history[-2].detail or "{}")
    return history[-2].outcome == "lost" and bool(before.get("own_fault")) and before.get("step") == job.step


def _backoff(db: Database, job: Job) -> float:
    """Return the seconds to wait: none after the first death, then 1, 3, 7 … 60 with no checkpoint between."""
    deaths = deaths_in_a_row(_tries(db, job), job)
    return float(min(60.0, 2.0 ** max(deaths - 1, 0) - 1))


def _make_good_lost_states(db: Database, job: Job, now: float) -> None:
    """Walk a completed job through states whose journal lines were damaged: it was in them."""
    for state in (states.STAGING, states.RUNNING, states.UPLOADING):
        jobs.transition(db, job.id, state, fence=job.fence, now=now)


def abandon(
    db: Database,
    attempt: Attempt,
    now: float,
    *,
    wait: float = 0.0,
    exit_code: int | None = None,
    hold: str | None = None,
) -> None:
    """Close an attempt whose worker was never known: its gate stays shut, so it did nothing. Costs no retry.

    `hold` says what the job waits for; a full disk is not one of the failed starts that end in a failure.
    """
    job = jobs.get(db, attempt.job_id)
    if not attempts.is_current(db, attempt.job_id, attempt.fence):
        return
    full = (hold or "").startswith(DISK_FULL)
    detail = json.dumps({"cause": DISK_FULL}) if full else None
    attempts.close(db, job.id, attempt.fence, outcome="unstarted", detail=detail, now=now, exit_code=exit_code)
    newest = attempts.of_job(db, job.id)[-STARTS_AT_MOST:]
    if job.stop_requested:
        _finish(db, job, states.CANCELLED, now)
    elif len(newest) == STARTS_AT_MOST and all(one.outcome == "unstarted" and not one.detail for one in newest):
        error = f"No worker could be started in {STARTS_AT_MOST} tries. See the supervisor's log; check trainer_python."
        _finish(db, job, states.FAILED, now, error=error)
    else:
        _requeue(db, job, now, why=DISK_FULL if full else "unstarted", hold=hold, wait=wait)


def _finish(db: Database, job: Job, state: str, now: float, error: str | None = None) -> str:
    columns: dict[str, Any] = {"finished_at": now, "activity": "", "eta_s": None, "error": error, "hold": None}
    columns["save_requested"] = 0  # of what is over, no checkpoint is to be had
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
    cause: str | None = None,
    hold: str | None = None,
    wait: float = 0.0,
) -> str:
    retries = job.retries if retries is None else retries
    lost = {"why": why, "cause": cause, "step": job.step} if cause else {"why": why}
    jobs.transition(db, job.id, states.PREEMPTED, fence=job.fence, now=now, detail=lost)
    columns: dict[str, Any] = {
        "retries": retries,
        "not_before": now + wait,
        "hold": hold,
        "activity": "",
        "eta_s": None,
        "done": None,
    }
    jobs.transition(db, job.id, states.QUEUED, fence=job.fence, now=now, detail={"why": why}, **columns)
    return states.QUEUED


def _keep_last_words(db: Database, attempt: Attempt, now: float) -> str:
    """Add the end of a lost worker's error output to the job's log, and return its last line: all there is to go by."""
    try:
        with (Path(attempt.directory) / "stderr.log").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - STDERR_TAIL))
            data = file.read(STDERR_TAIL)
    except OSError:
        return ""
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()][-20:]
    telemetry.add_log_lines(db, attempt.job_id, [(now, "error", line) for line in lines])
    return lines[-1].strip() if lines else ""
