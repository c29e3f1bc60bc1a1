"""A worker whose job was claimed again, or whose attempt ended, changes no row: not one, through any function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.journal import JournalWriter
from engine.running import recover
from engine.running.ingest import ingest
from store import Store, attempts, catalog, jobs, memory_peaks, telemetry
from store.library import Database
from store.memory_peaks import Peak
from store.telemetry import Checkpoint
from tests.store.entries import claim, model, new_job

TABLES = (
    *("jobs", "attempts", "events", "metrics", "log_lines", "results", "checkpoints", "models"),
    *("memory_peaks", "datasets", "base_models"),
)

# One write of each kind that a worker's lines, or an attempt's end, cause; each returns what it says it changed.
WRITES: dict[str, Callable[[Database, str, int], object]] = {
    "state": lambda db, job, fence: jobs.transition(db, job, "cancelled", fence=fence, now=9.0),
    "columns": lambda db, job, fence: jobs.update(db, job, fence=fence, activity="resurrected", step=99),
    "event": lambda db, job, fence: jobs.add_event(db, job, "oom", {"rung": 1}, now=9.0, fence=fence),
    "log lines": lambda db, job, fence: telemetry.add_log_lines(db, job, [(9.0, "train", "x")], fence=fence),
    "resume": lambda db, job, fence: telemetry.forget_after(db, job, 0, fence=fence),
    "checkpoint": lambda db, job, fence: telemetry.add_checkpoint(db, checkpoint(job, 99), fence=fence),
    "checkpoint gone": lambda db, job, fence: telemetry.mark_checkpoint(db, job, 5, "removed", fence=fence),
    "result": lambda db, job, fence: telemetry.set_result(db, job, {"loss_final": 0.0}, now=9.0, fence=fence),
    "model": lambda db, job, fence: catalog.add_model(db, model(job_id=job), fence=fence),
    "memory peak": lambda db, job, fence: memory_peaks.record(db, Peak(job, "cpu", "m", 1, 10**12, 9.0), fence=fence),
    "attempt": lambda db, job, fence: attempts.update(db, job, fence, pid=666, outcome="completed"),
    "attempt's end": lambda db, job, fence: attempts.close(db, job, fence, outcome="lost", detail=None, now=9.0),
}

# The lines of a whole run, as a worker that came back from the dead would write them.
LINES: list[tuple[str, dict[str, Any]]] = [
    ("state", {"to": "uploading", "activity": "resurrected"}),
    ("activity", {"text": "resurrected"}),
    ("resume", {"step": 0}),
    ("point", {"step": 99, "phase": "train", "ts": 9.0, "loss": 0.0, "eta_s": 1.0}),
    ("log", {"stream": "train", "text": "resurrected"}),
    ("event", {"kind": "oom", "payload": {}}),
    ("checkpoint", {"path": "/c", "bytes": 1, "step": 99, "epoch": 1.0, "loss": 0.0, "eval_loss": None, "lr": 0.0}),
    ("checkpoint_gone", {"step": 5, "state": "quarantined"}),
    ("model", {"id": "m", "name": "n", "family": "llama", "params": 7, "precision": "bf16", "path": "/m"}),
    ("result", {"loss_final": 0.0}),
    ("memory", {"peak_bytes": 1, "phase": "train"}),
    ("end", {"outcome": "completed", "error": None, "cause": None}),
]


def checkpoint(job_id: str, step: int) -> Checkpoint:
    return Checkpoint(f"c{step}", job_id, step, 0.5, 2.0, None, 1e-4, "/c", 10, "published", 1.0)


def everything(store: Store) -> dict[str, list[dict[str, Any]]]:
    return {table: list(store.read().query(f"SELECT * FROM {table}")) for table in TABLES}


@pytest.fixture
def job(store: Store, tmp_path: Path) -> str:
    """A job that runs under fence 1, with something of each kind that a worker could spoil."""
    directory = tmp_path / "attempt-1"
    directory.mkdir()
    with store.write() as db:
        job_id = new_job(db, plan={"device": "cpu", "mode": "m", "planned": 7, "needed": 8}).id
        claim(db, job_id, directory=str(directory))
        for state in ("staging", "running"):
            jobs.transition(db, job_id, state, fence=1, now=1.0)
        telemetry.add_points(db, job_id, 1, [telemetry.Point(step=n, phase="train", ts=1.0) for n in range(1, 9)])
        telemetry.add_checkpoint(db, checkpoint(job_id, 5), fence=1)
    return job_id


def requeue(db: Database, job_id: str) -> None:
    """End attempt 1 as lost and queue the job again."""
    attempts.close(db, job_id, 1, outcome="lost", detail=None, now=2.0)
    jobs.transition(db, job_id, "preempted", fence=1, now=2.0)
    jobs.transition(db, job_id, "queued", fence=1, now=2.0)


def supersede(store: Store, job_id: str) -> None:
    """Let the job be claimed again, under fence 2, and run."""
    with store.write() as db:
        requeue(db, job_id)
        claim(db, job_id, now=3.0)
        for state in ("staging", "running"):
            jobs.transition(db, job_id, state, fence=2, now=3.0)


@pytest.mark.parametrize("what", WRITES)
def test_a_write_under_the_current_fence_is_made_and_under_an_old_or_unheard_of_one_it_is_not(
    store: Store, job: str, what: str
) -> None:
    before = everything(store)
    for stale in (0, 2, 99):
        with store.write() as db:
            assert not WRITES[what](db, job, stale)
    assert everything(store) == before
    supersede(store, job)
    before = everything(store)
    with store.write() as db:
        assert not WRITES[what](db, job, 1)
    assert everything(store) == before
    with store.write() as db:
        assert WRITES[what](db, job, 2)
    assert everything(store) != before


@pytest.mark.parametrize("what", [name for name in WRITES if name not in ("state", "columns", "event")])
def test_a_closed_attempt_writes_nothing_even_before_the_next_claim(store: Store, job: str, what: str) -> None:
    with store.write() as db:
        requeue(db, job)
    before = everything(store)
    with store.write() as db:
        assert not WRITES[what](db, job, 1)
    assert everything(store) == before


@pytest.mark.parametrize("claimed_again", [False, True], ids=["queued again", "claimed again"])
@pytest.mark.parametrize("line", LINES, ids=[kind for kind, _ in LINES])
def test_no_line_of_a_stale_worker_is_taken_in(
    store: Store, job: str, line: tuple[str, dict[str, Any]], claimed_again: bool
) -> None:
    old = attempts.get(store.read(), job, 1)
    assert old is not None
    with store.write() as db:
        requeue(db, job)
        if claimed_again:
            claim(db, job, now=3.0)
    before = everything(store)
    writer = JournalWriter(Path(old.directory) / "journal.jsonl", old.fence, clock=lambda: 9.0)
    writer.append(*line)
    writer.close()
    assert ingest(store, old) == 0
    assert everything(store) == before


@pytest.mark.parametrize("end", [recover.settle, recover.abandon])
@pytest.mark.parametrize("claimed_again", [False, True], ids=["queued again", "claimed again"])
def test_the_end_of_a_stale_attempt_moves_no_job(
    store: Store, job: str, end: Callable[[Database, Any, float], object], claimed_again: bool
) -> None:
    old = attempts.get(store.read(), job, 1)
    assert old is not None
    Path(old.directory, "stderr.log").write_text("Killed\n")
    with store.write() as db:
        requeue(db, job)
        if claimed_again:
            claim(db, job, now=3.0)
    before = everything(store)
    with store.write() as db:
        end(db, old, 9.0)
    assert everything(store) == before


def test_a_claim_ends_whatever_attempt_was_left_open(store: Store, job: str) -> None:
    with store.write() as db:
        db.conn.execute("UPDATE jobs SET state = 'queued' WHERE id = ?", [job])
        claim(db, job, now=3.0)
    assert [attempt.fence for attempt in attempts.open_attempts(store.read())] == [2]
    assert [(a.outcome, a.ended_at) for a in attempts.of_job(store.read(), job)] == [("lost", 3.0), (None, None)]
