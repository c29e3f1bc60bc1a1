"""Telemetry, catalogue and keys: what the other tables promise."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from store import Store, attempts, catalog, jobs, keys, telemetry
from store.telemetry import Checkpoint, Point
from tests.store.entries import base_model, claim, dataset, model, new_job


@pytest.fixture
def job(store: Store) -> str:
    with store.write() as db:
        return new_job(db).id


def train(step: int, loss: float = 1.0) -> Point:
    return Point(step=step, phase="train", ts=float(step), loss=loss)


def evaluated(step: int, loss: float = 1.0) -> Point:
    return Point(step=step, phase="eval", ts=float(step), loss=loss)


def test_a_point_told_again_replaces_the_one_of_its_job_step_and_phase(store: Store, job: str) -> None:
    with store.write() as db:
        other = new_job(db).id
        telemetry.add_points(db, job, 1, [train(1, 9.0), evaluated(1, 8.0), train(2, 7.0)])
        telemetry.add_points(db, other, 1, [train(1, 6.0)])
        telemetry.add_points(db, job, 2, [train(1, 5.0)])
    # At one step the evaluation comes first, so that who has seen step N has seen all of step N.
    assert telemetry.points(store.read(), job) == [evaluated(1, 8.0), train(1, 5.0), train(2, 7.0)]
    assert telemetry.points(store.read(), other) == [train(1, 6.0)]


def test_every_field_of_a_point_comes_back(store: Store, job: str) -> None:
    values = [3, "train", 4.5, 2, 1.25, 1e-4, 0.5, 1234.5, 7.5, 99, 0.25, 0.125]
    point = Point(*values)
    with store.write() as db:
        telemetry.add_points(db, job, 1, [point])
    assert telemetry.points(store.read(), job) == [point]


def test_points_are_asked_for_by_step_and_phase(store: Store, job: str) -> None:
    with store.write() as db:
        telemetry.add_points(db, job, 1, [train(n) for n in range(1, 6)] + [evaluated(4)])
    assert [(p.step, p.phase) for p in telemetry.points(store.read(), job, since_step=3)] == [
        (4, "eval"),
        (4, "train"),
        (5, "train"),
    ]
    assert telemetry.points(store.read(), job, phase="eval") == [evaluated(4)]
    assert telemetry.latest_step(store.read(), job) == 5
    assert telemetry.latest_step(store.read(), "nobody") == -1


def test_forgetting_after_a_step_keeps_that_step_and_other_jobs(store: Store, job: str) -> None:
    with store.write() as db:
        other = new_job(db).id
        for each in (job, other):
            telemetry.add_points(db, each, 1, [train(n) for n in range(1, 6)])
        telemetry.forget_after(db, job, 3)
    assert [p.step for p in telemetry.points(store.read(), job)] == [1, 2, 3]
    assert len(telemetry.points(store.read(), other)) == 5


def test_forgetting_keeps_the_points_of_phases_that_count_other_things(store: Store, job: str) -> None:
    beside = [Point(step, phase, 0.0, loss=1.0) for step in (2, 9) for phase in ("prune", "ungrown", "ungrown_eval")]
    with store.write() as db:
        telemetry.add_points(db, job, 1, [train(1), evaluated(1), train(5), evaluated(5), *beside])
        telemetry.forget_after(db, job, 1)
    assert telemetry.points(store.read(), job) == [evaluated(1), train(1), *beside]


def beside(phase: str, *steps: int) -> list[Point]:
    return [Point(step, phase, 0.0, loss=1.0) for step in steps]


def test_a_job_is_followed_by_its_own_steps_whatever_other_phases_count(store: Store) -> None:
    def newer(since: int) -> list[tuple[int, str]]:
        return [(p.step, p.phase) for p in telemetry.points(store.read(), job, since_step=since)]

    with store.write() as db:
        job = new_job(db, total_steps=6).id
        telemetry.add_points(db, job, 1, beside("ungrown", 5, 90))
    assert telemetry.latest_step(store.read(), job) == -1
    assert newer(-1) == [(5, "ungrown"), (90, "ungrown")]
    with store.write() as db:
        telemetry.add_points(db, job, 1, [train(1), train(2), evaluated(2)])
    assert telemetry.latest_step(store.read(), job) == 2
    assert newer(1) == [(2, "eval"), (2, "train")]
    assert len(newer(-1)) == 5
    assert telemetry.points(store.read(), job, since_step=5, phase="ungrown") == beside("ungrown", 90)


def test_of_a_job_without_steps_of_its_own_every_phase_counts(store: Store) -> None:
    with store.write() as db:
        job = new_job(db, total_steps=0).id
        telemetry.add_points(db, job, 1, beside("prune", 1, 2, 3))
    assert telemetry.latest_step(store.read(), job) == 3
    assert telemetry.points(store.read(), job, since_step=2) == beside("prune", 3)


def follow(store: Store, job: str, most: int) -> tuple[list[Point], int]:
    """Return what comes of a job from the beginning on, and the size of the largest part."""
    seen, parts, step, aside, more = [], [], -1, 0.0, True
    while more:
        points, step, aside, more = telemetry.points_ahead(store.read(), job, step=step, aside=aside, most=most)
        parts.append(len(points))
        seen += points
    return seen, max(parts)


def test_a_long_curve_comes_in_parts_without_gap_or_repetition(store: Store, job: str) -> None:
    own = [make(step) for step in range(1, 31) for make in (evaluated, train)]
    other = [Point(step, "grow", ts, loss=1.0) for step, ts in ((90, 3.0), (2, 4.0), (3, 4.0), (4, 5.0), (5, 6.0))]
    with store.write() as db:
        telemetry.add_points(db, job, 1, [*own, *other])
    for most in (1, 2, 3, 7, 100):
        seen, largest = follow(store, job, most)
        assert sorted(seen) == sorted([*own, *other])
        assert [point for point in seen if point.phase != "grow"] == own
        assert largest <= 2 * most + 1


def test_of_a_job_without_own_steps_every_phase_comes_in_parts(store: Store) -> None:
    points = [*beside("calibrate", 1, 2, 3), *beside("prune", 4, 5)]
    with store.write() as db:
        job = new_job(db, total_steps=0).id
        telemetry.add_points(db, job, 1, points)
    assert follow(store, job, 2) == (points, 2)


def test_the_latest_point_of_each_job_is_its_newest_training_point(store: Store, job: str) -> None:
    with store.write() as db:
        other, silent = new_job(db).id, new_job(db).id
        telemetry.add_points(db, job, 1, [train(1), train(2, 3.0), evaluated(9)])
        telemetry.add_points(db, other, 1, [train(7)])
        telemetry.add_points(db, silent, 1, [evaluated(0)])
    assert telemetry.latest_points(store.read(), [job, other, silent]) == {job: train(2, 3.0), other: train(7)}


def test_the_newest_two_thousand_log_lines_are_kept_and_their_numbers_only_rise(store: Store, job: str) -> None:
    with store.write() as db:
        other = new_job(db).id
        telemetry.add_log_lines(db, other, [(0.0, "train", "mine")])
        telemetry.add_log_lines(db, job, [(float(n), "train", f"line {n}") for n in range(1, 1501)])
        telemetry.add_log_lines(db, job, [(float(n), "train", f"line {n}") for n in range(1501, 2301)])
        telemetry.add_log_lines(db, job, [])
    kept = telemetry.log_lines(store.read(), job)
    assert [line.seq for line in kept] == list(range(301, 2301))
    assert kept[0].text == "line 301"
    assert kept[-1].text == "line 2300"
    assert [line.seq for line in telemetry.log_lines(store.read(), job, since=2298)] == [2299, 2300]
    with store.write() as db:
        telemetry.add_log_lines(db, job, [(1.0, "error", f"burst {n}") for n in range(5000)])
    kept = telemetry.log_lines(store.read(), job)
    assert [line.seq for line in kept] == list(range(5301, 7301))
    assert [line.text for line in telemetry.log_lines(store.read(), other)] == ["mine"]


def test_a_result_told_again_replaces_the_first(store: Store, job: str) -> None:
    assert telemetry.result(store.read(), job) is None
    with store.write() as db:
        telemetry.set_result(db, job, {"loss_final": 2.0}, now=1.0)
        telemetry.set_result(db, job, {"loss_final": 1.0, "ppl_final": None}, now=2.0)
    assert telemetry.result(store.read(), job) == {"loss_final": 1.0, "ppl_final": None}


def test_a_checkpoint_at_the_same_step_keeps_its_id_and_takes_the_new_facts(store: Store, job: str) -> None:
    first = Checkpoint("one", job, 5, 0.5, 2.0, None, 1e-4, "/a", 10, "published", 1.0)
    with store.write() as db:
        telemetry.add_checkpoint(db, first)
        telemetry.mark_checkpoint(db, job, 5, "quarantined")
        assert telemetry.checkpoints(db, job) == [replace(first, state="quarantined")]
        telemetry.add_checkpoint(db, replace(first, id="two", path="/b", loss=1.0))
        telemetry.add_checkpoint(db, replace(first, id="three", step=3))
    assert telemetry.checkpoints(store.read(), job) == [
        replace(first, id="three", step=3),
        replace(first, path="/b", loss=1.0),
    ]


def test_deleting_a_job_takes_all_that_it_reported_along(store: Store, job: str) -> None:
    with store.write() as db:
        attempts.begin(db, job, 1, device="cpu", directory="/d", start_step=0, now=1.0)
        telemetry.add_points(db, job, 1, [train(1)])
        telemetry.add_log_lines(db, job, [(1.0, "train", "x")])
        telemetry.set_result(db, job, {}, now=1.0)
        telemetry.add_checkpoint(db, Checkpoint("c", job, 5, 0.5, 2.0, None, 1e-4, "/a", 10, "published", 1.0))
        jobs.delete(db, job)
    for table in ("attempts", "events", "metrics", "log_lines", "results", "checkpoints"):
        assert store.read().execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0, table


def test_attempts_are_open_until_closed_and_listed_by_fence(store: Store, job: str) -> None:
    with store.write() as db:
        claim(db, job, directory="/1")
        assert attempts.update(db, job, 1, pid=7, boot_id="b", start_ticks=9, gate_opened=1) == 1
        assert attempts.close(db, job, 1, outcome="lost", detail=None, now=2.0, exit_code=-9) == 1
        jobs.transition(db, job, "preempted", fence=1, now=2.0)
        jobs.transition(db, job, "queued", fence=1, now=2.0)
        claim(db, job, start_step=5, now=3.0)
    (running,) = attempts.open_attempts(store.read())
    assert (running.fence, running.pid, running.gate_opened, running.start_step) == (2, None, False, 5)
    history = [(a.fence, a.outcome, a.gate_opened, a.exit_code) for a in attempts.of_job(store.read(), job)]
    assert history == [(1, "lost", True, -9), (2, None, False, None)]
    assert attempts.get(store.read(), job, 3) is None


def test_the_same_name_again_is_the_next_version(store: Store) -> None:
    with store.write() as db:
        assert [catalog.add_dataset(db, dataset()).version for _ in range(3)] == [1, 2, 3]
        assert catalog.add_dataset(db, dataset(name="other")).version == 1
        assert [catalog.add_base_model(db, base_model()).version for _ in range(2)] == [1, 2]
        assert [catalog.add_model(db, model()).version for _ in range(2)] == [1, 2]
    assert [(d.name, d.version) for d in catalog.datasets(store.read())] == [
        ("other", 1),
        ("rows", 3),
        ("rows", 2),
        ("rows", 1),
    ]


def test_a_removed_version_leaves_the_others_as_they_are(store: Store) -> None:
    with store.write() as db:
        first, second = (catalog.add_dataset(db, dataset()) for _ in range(2))
        catalog.remove(db, first)
        assert catalog.datasets(db) == [second]
        assert catalog.add_dataset(db, dataset()).version == 3


def test_a_model_registered_twice_under_one_id_is_one_row(store: Store) -> None:
    entry = model()
    with store.write() as db:
        first = catalog.add_model(db, entry)
        assert catalog.add_model(db, replace(entry, path="/elsewhere")) == first
    assert catalog.models(store.read()) == [first]


def test_a_key_is_stored_by_its_hash_and_never_by_its_secret(store: Store) -> None:
    secret = f"fus_{uuid.uuid4().hex}{uuid.uuid4().hex}"
    with store.write() as db:
        added = keys.add(db, id="k", name="mine", secret=secret, scopes=("read", "train"), now=1.0)
    assert keys.authenticate(store.read(), secret) == added
    assert keys.authenticate(store.read(), secret[:-1]) is None
    assert keys.authenticate(store.read(), keys.digest(secret)) is None
    store.close()
    for path in store.path.parent.iterdir():
        assert secret[10:].encode() not in path.read_bytes(), path


def test_a_revoked_key_opens_nothing_and_is_no_longer_listed(store: Store) -> None:
    with store.write() as db:
        keys.add(db, id="k", name="mine", secret="s" * 40, scopes=("read",), now=1.0)
        assert keys.revoke(db, "k", now=2.0)
        assert not keys.revoke(db, "k", now=3.0)
        assert not keys.revoke(db, "unknown", now=3.0)
    assert keys.authenticate(store.read(), "s" * 40) is None
    assert keys.is_known(store.read(), "s" * 40)
    assert keys.listing(store.read()) == []
