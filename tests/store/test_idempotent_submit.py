"""One idempotency key is one job, whoever submits it and however often."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.errors import Conflict
from engine.paths import Home
from engine.service import Service, Submission
from engine.settings import Settings
from store import catalog
from tests.store.entries import base_model, dataset

REQUEST: dict[str, Any] = {"type": "finetune", "idempotency_key": "one", "base_model_id": "tiny", "dataset_id": "rows"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    opened = Service(Home(tmp_path / "home"), config=Settings())
    with opened.store.write() as db:
        catalog.add_base_model(db, base_model())
        catalog.add_dataset(db, dataset())
    yield opened
    opened.close()


def submit_at_once(service: Service, requests: list[dict[str, Any]]) -> list[Submission | Conflict]:
    together = threading.Barrier(len(requests))

    def submit(request: dict[str, Any]) -> Submission | Conflict:
        together.wait(30)
        try:
            return service.submit(request)
        except Conflict as error:
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(submit, requests))


def test_thirty_two_threads_with_one_key_make_one_job(service: Service) -> None:
    answers = submit_at_once(service, [REQUEST] * 32)
    made = [answer for answer in answers if isinstance(answer, Submission)]
    assert len(made) == 32
    assert sum(answer.created for answer in made) == 1
    assert len({answer.job.id for answer in made}) == 1
    (job,) = service.jobs()
    assert [event.payload for event in service.events(job.id)] == [{"from": None, "to": "queued"}]


def test_of_two_bodies_under_one_key_the_first_wins_and_the_other_is_a_conflict(service: Service) -> None:
    other = {**REQUEST, "hyperparams": {"steps": 7}}
    answers = submit_at_once(service, [REQUEST, other] * 16)
    (job,) = service.jobs()
    made = [answer for answer in answers if isinstance(answer, Submission)]
    refused = [answer for answer in answers if isinstance(answer, Conflict)]
    assert (len(made), len(refused)) == (16, 16)
    assert {answer.job.id for answer in made} == {job.id}
    assert all("'one'" in str(answer) and job.id in str(answer) for answer in refused)


def test_a_replay_is_the_same_job_after_it_was_cancelled_and_its_dataset_removed(service: Service) -> None:
    job = service.submit(REQUEST).job
    service.cancel(job.id)
    service.remove_dataset("rows")
    again = service.submit(REQUEST)
    assert (again.job.id, again.job.state, again.created) == (job.id, "cancelled", False)
