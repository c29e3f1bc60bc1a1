"""What was asked of a job stands until it is done, and no longer."""

from __future__ import annotations

import pytest

from engine.running import recover
from engine.running.deaths import Death
from store import Store, asked, attempts, jobs, telemetry
from tests.store.entries import claim, new_job


def asking(store: Store, *, at: float) -> str:
    """Return a running job that was asked for a checkpoint at a time."""
    with store.write() as db:
        job_id = new_job(db).id
        fence = claim(db, job_id)
        for state in ("staging", "running"):
            assert jobs.transition(db, job_id, state, fence=fence, now=2.0)
        asked.to_save(db, job_id, now=at)
    return job_id


@pytest.mark.parametrize(("told", "stands"), [(9.9, True), (10.0, False), (11.0, False)])
def test_a_checkpoint_is_the_one_asked_for_unless_it_was_told_of_before(
    store: Store, told: float, stands: bool
) -> None:
    job_id = asking(store, at=10.0)
    with store.write() as db:
        asked.is_saved(db, job_id, ts=told, fence=1)
    assert jobs.get(store.read(), job_id).save_requested is stands


def test_asked_again_only_a_checkpoint_after_the_last_time_will_do(store: Store) -> None:
    job_id = asking(store, at=10.0)
    with store.write() as db:
        asked.to_save(db, job_id, now=20.0)
        asked.is_saved(db, job_id, ts=15.0, fence=1)
    assert jobs.get(store.read(), job_id).save_requested
    assert asked.save_asked_at(store.read(), job_id) == 20.0


def test_a_worker_of_an_old_fence_has_done_nothing_that_was_asked(store: Store) -> None:
    job_id = asking(store, at=10.0)
    with store.write() as db:
        asked.is_saved(db, job_id, ts=15.0, fence=0)
    assert jobs.get(store.read(), job_id).save_requested


@pytest.mark.parametrize(("stop", "stands"), [(False, True), (True, False)])
def test_the_request_outlives_a_lost_worker_and_not_the_job(store: Store, stop: bool, stands: bool) -> None:
    job_id = asking(store, at=10.0)
    with store.write() as db:
        jobs.update(db, job_id, stop_requested=int(stop))
        (attempt,) = attempts.of_job(db, job_id)
        state = recover.settle(db, attempt, 20.0, Death(-9))
    assert state == ("cancelled" if stop else "queued")
    assert jobs.get(store.read(), job_id).save_requested is stands


def test_who_is_to_go_is_told_once_and_listed_when_nothing_works_on_it(store: Store) -> None:
    job_id = asking(store, at=10.0)
    with store.write() as db:
        for _ in range(2):
            asked.to_go(db, job_id, now=11.0)
    db = store.read()
    assert asked.going(db) == []
    assert jobs.get(db, job_id).activity == jobs.GOING
    assert [event.kind for event in jobs.events(db, job_id)].count(asked.GO) == 1
    with store.write() as db:
        assert jobs.transition(db, job_id, "cancelled", fence=1, now=12.0)
    assert asked.going(store.read()) == [job_id]
    with store.write() as db:
        asked.to_stay(db, job_id, "somebody needs it", now=13.0)
    assert asked.going(store.read()) == []
    assert jobs.events(store.read(), job_id)[-1].payload == {"why": "somebody needs it"}


def test_a_checkpoint_is_found_by_its_id_and_by_those_who_start_from_it(store: Store) -> None:
    with store.write() as db:
        first = new_job(db)
        row = {"epoch": 0.0, "loss": None, "eval_loss": None, "lr": None, "bytes": 1, "created_at": 1.0}
        for number in (1, 2):
            telemetry.add_checkpoint(
                db, telemetry.Checkpoint(f"c{number}", first.id, number, path="/c", state="published", **row)
            )
        second, third = new_job(db, checkpoint_id="c2"), new_job(db, checkpoint_id="c9")
    db = store.read()
    found = telemetry.find_checkpoint(db, "c2")
    assert found
    assert (found.step, found.pinned) == (2, False)
    assert telemetry.find_checkpoint(db, "c9") is None
    assert [job.id for job in jobs.branches(db, first.id)] == [second.id]
    starts = telemetry.starts(db, [first.id, second.id, third.id])
    assert starts == {second.id: ("c2", first.id, 2), third.id: ("c9", None, None)}
