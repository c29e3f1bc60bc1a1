"""Many processes at once: one idempotency key is one job, and one job has one claimer, however close they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.errors import Conflict
from engine.paths import Home
from engine.running import starting
from engine.service import Service
from engine.settings import Settings
from store import Store, attempts, catalog, jobs, states
from tests.store import forked
from tests.store.entries import base_model, dataset, new_job
from tests.store.test_lifecycle import an_order

REQUEST: dict[str, Any] = {"type": "finetune", "idempotency_key": "one", "base_model_id": "tiny", "dataset_id": "rows"}
OTHER = {**REQUEST, "hyperparams": {"steps": 7}}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A data folder with a model and a dataset, which nobody has open."""
    service = Service(Home(tmp_path / "home"), config=Settings())
    with service.store.write() as db:
        catalog.add_base_model(db, base_model())
        catalog.add_dataset(db, dataset())
    service.close()
    return service.home


def submitting(home: Home, requests: list[dict[str, Any]]) -> Callable[[], list[tuple[str, bool]]]:
    """Return a work that submits each request in a thread of its own and tells (job, made by this very call)."""

    def submit(service: Service, request: dict[str, Any]) -> tuple[str, bool]:
        try:
            done = service.submit(request)
        except Conflict:
            return "conflict", False
        return done.job.id, done.created

    def work() -> list[tuple[str, bool]]:
        service = Service(home, config=Settings())
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda request: submit(service, request), requests))

    return work


def test_four_processes_of_eight_threads_with_one_key_make_one_job(home: Home) -> None:
    answers = [answer for part in forked.at_once([submitting(home, [REQUEST] * 8)] * 4) for answer in part]
    service = Service(home, config=Settings())
    (job,) = service.jobs()
    assert Counter(answers) == {(job.id, True): 1, (job.id, False): 31}
    assert [event.payload for event in service.events(job.id)] == [{"from": None, "to": "queued"}]
    service.close()


def test_of_two_bodies_in_four_processes_one_makes_the_job_and_the_other_is_a_conflict(home: Home) -> None:
    works = [submitting(home, [body] * 8) for body in (REQUEST, OTHER, REQUEST, OTHER)]
    answers = [answer for part in forked.at_once(works) for answer in part]
    service = Service(home, config=Settings())
    (job,) = service.jobs()
    assert Counter(answers) == {(job.id, True): 1, (job.id, False): 15, ("conflict", False): 16}
    service.close()


@pytest.mark.parametrize("races", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_two_supervisors_that_claim_the_same_job_at_the_same_moment_are_one_claimer(tmp_path: Path, races: int) -> None:
    path = tmp_path / "store.db"
    store = Store(path)
    with store.write() as db:
        queued = [new_job(db) for _ in range(races)]
    store.close()
    level = forked.CONTEXT.Barrier(2)

    def claim_all() -> list[str]:
        """Claim every job by the supervisor's own transaction, in step with the other process."""
        mine = Store(path)
        won = []
        for job in queued:
            level.wait(60)
            if starting.claim(mine, job, an_order(job), tmp_path, 1.0):
                won.append(job.id)
        return won

    first, second = forked.at_once([claim_all, claim_all])
    assert sorted([*first, *second]) == sorted(job.id for job in queued)
    assert first, "one process won every race, so there was none"
    assert second, "one process won every race, so there was none"
    store = Store(path)
    for job in jobs.newest(store.read()):
        assert (job.state, job.fence) == (states.PROVISIONING, 1)
    assert len(attempts.open_attempts(store.read())) == races
    store.check()
    store.close()
