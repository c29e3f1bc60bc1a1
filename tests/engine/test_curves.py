"""A long curve in few points: what has to stay stays, and it is the curve as it is now."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from engine import curves
from engine.curves import Curves
from store import NotFound, Store, jobs, telemetry
from store.telemetry import Point
from tests.store.entries import new_job


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store.db")
    yield store
    store.close()


@pytest.fixture
def job(store: Store) -> str:
    with store.write() as db:
        job_id = new_job(db).id
        jobs.update(db, job_id, total_steps=1_000_000)
    return job_id


@pytest.fixture(autouse=True)
def few_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short curve is a long one."""
    monkeypatch.setattr(curves, "MOST_STRETCHES", 64)
    monkeypatch.setattr(curves, "READ_AT_ONCE", 8)


def train(step: int, loss: float | None = None) -> Point:
    return Point(step=step, phase="train", ts=float(step), loss=math.sin(step / 90) if loss is None else loss)


def add(store: Store, job: str, *points: Point, fence: int = 0) -> None:
    with store.write() as db:
        telemetry.add_points(db, job, fence, points)


def curve(store: Store, job: str, since: int = -1, most: int = 20) -> list[tuple[int, str]]:
    return [(p.step, p.phase) for p in Curves(store).thin(job, since_step=since, most=most).points]


@pytest.mark.parametrize("most", [8, 20, 63, 100, 500])
def test_a_long_curve_keeps_its_ends_and_its_one_spike_in_as_few_points_as_asked(store, job, most):
    add(store, job, *(train(step, 9.0 if step == 777 else None) for step in range(1, 2001)))
    kept = curve(store, job, most=most)
    assert len(kept) <= most
    assert len(kept) >= most * 0.6
    assert kept == sorted(kept)
    assert {(1, "train"), (777, "train"), (2000, "train")} <= set(kept)


def test_a_loss_that_was_no_number_is_a_spike(store, job):
    points = [train(step) for step in range(1, 2001)]
    points[500], points[900] = points[500]._replace(loss=None), points[900]._replace(loss=math.inf)
    add(store, job, *points)
    assert {(501, "train"), (901, "train")} <= set(curve(store, job, most=40))


def test_the_points_stand_evenly_along_the_steps(store, job):
    add(store, job, *(train(step) for step in range(1, 5001)))
    steps = [step for step, _ in curve(store, job, most=100)]
    assert max(b - a for a, b in pairwise(steps)) <= 3 * 5000 / 50


def test_a_curve_that_is_short_enough_comes_whole(store, job):
    add(store, job, *(train(step) for step in range(1, 21)))
    assert [step for step, _ in curve(store, job, most=20)] == list(range(1, 21))
    assert len(curve(store, job, most=19)) <= 19
    assert curve(store, job, most=2) == [(1, "train"), (20, "train")]


def test_evaluations_stay_where_there_is_room_and_are_thinned_where_not(store, job):
    evals = [Point(step=step, phase="eval", ts=1.0, loss=float(step)) for step in range(100, 2001, 100)]
    add(store, job, *evals, *(train(step) for step in range(1, 2001)))
    assert [step for step, phase in curve(store, job, most=40) if phase == "eval"] == [p.step for p in evals]
    thinned = curve(store, job, most=16)
    assert len(thinned) <= 16
    assert 2 <= sum(phase == "eval" for _, phase in thinned) <= 8


@pytest.mark.parametrize("since", [0, 1, 500, 1003, 1900, 1999, 2000, 9999])
def test_beyond_a_step_only_later_points_come_with_the_spike_among_them(store, job, since):
    add(store, job, *(train(step, 9.0 if step in (300, 1004, 1950) else None) for step in range(1, 2001)))
    kept = [step for step, _ in curve(store, job, since=since)]
    assert all(step > since for step in kept)
    assert len(kept) == min(max(2000 - since, 0), 20) or 8 <= len(kept) <= 20
    assert {step for step in (300, 1004, 1950) if step > since} <= set(kept)
    assert kept[-1:] == ([2000] if since < 2000 else [])


def test_other_phases_come_with_the_whole_curve_alone(store, job):
    grow = [Point(step=step, phase="grow", ts=1.0, loss=5.0) for step in range(3)]
    add(store, job, *grow, *(train(step) for step in range(1, 2001)))
    assert {phase for _, phase in curve(store, job)} == {"grow", "train"}
    assert {phase for _, phase in curve(store, job, since=0)} == {"train"}


def test_what_is_added_is_read_and_what_stands_gives_the_same_answer(store, job):
    known = Curves(store)
    for end in range(100, 3001, 100):
        add(store, job, *(train(step, 9.0 if step % 1000 == 50 else None) for step in range(end - 99, end + 1)))
        first = known.thin(job, since_step=-1, most=30)
        assert known.thin(job, since_step=-1, most=30) is first
        assert first.latest_step == first.points[-1].step == end
    assert {50, 1050, 2050} <= {point.step for point in first.points}
    assert first.points[0].step == 1


def test_an_evaluation_that_comes_after_its_training_point_is_not_missed(store, job):
    known = Curves(store)
    add(store, job, *(train(step) for step in range(1, 101)))
    known.thin(job, since_step=-1, most=30)
    add(store, job, Point(step=100, phase="eval", ts=1.0, loss=1.0))
    assert (100, "eval") in {(p.step, p.phase) for p in known.thin(job, since_step=-1, most=30).points}


def test_what_a_resume_took_back_is_gone_though_the_run_is_further_than_before(store, job):
    known = Curves(store)
    add(store, job, *(train(step, 50.0 if step == 1500 else None) for step in range(1, 2001)))
    assert max(p.loss or 0 for p in known.thin(job, since_step=-1, most=30).points) == 50.0
    with store.write() as db:
        telemetry.forget_after(db, job, 1000)
        jobs.add_event(db, job, "resume", {"step": 1000}, now=1.0)
        telemetry.add_points(db, job, 1, [train(step) for step in range(1001, 2101)])
    renewed = known.thin(job, since_step=-1, most=30)
    assert max(p.loss or 0 for p in renewed.points) <= 1.0
    assert renewed.latest_step == 2100


def test_many_threads_see_whole_curves_while_one_is_written(store, job):
    known, wrong, stop = Curves(store), [], threading.Event()
    add(store, job, *(train(step) for step in range(1, 501)))

    def look() -> None:
        while not stop.is_set():
            found = known.thin(job, since_step=-1, most=20)
            steps = [point.step for point in found.points]
            if steps != sorted(steps) or steps[0] != 1 or steps[-1] != found.latest_step:
                wrong.append(steps)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for end in range(550, 1001, 50):
        add(store, job, *(train(step) for step in range(end - 49, end + 1)))
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_few_curves_are_kept_and_an_unknown_run_is_said(store, job, monkeypatch):
    monkeypatch.setattr(curves, "RUNS_KEPT", 1)
    known = Curves(store)
    with store.write() as db:
        other = new_job(db).id
    for job_id in (job, other, job):
        add(store, job_id, *(train(step) for step in range(1, 101)))
        assert known.thin(job_id, since_step=-1, most=10).latest_step == 100
    with pytest.raises(NotFound):
        known.thin("nothing", since_step=-1, most=10)
