"""What dialect A takes beyond the documented fields: several datasets, a project, epochs, and how rows are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from engine.service import Service
from store import catalog
from tests.api.conftest import DATA, Payload

MORE = replace(DATA, id="00000000-0000-4000-8000-000000000077", name="more", sha256="1" * 64)


@pytest.fixture(scope="module", autouse=True)
def _more(service: Service) -> None:
    with service.store.write() as db:
        catalog.add_dataset(db, MORE)


@pytest.fixture
def refused(http: httpx.Client, payload: Payload) -> Callable[..., list[tuple[str, ...]]]:
    """Post a request that cannot be a job; return the places of its faults."""

    def post(**fields: Any) -> list[tuple[str, ...]]:
        answer = http.post("/jobs", json=payload(**fields))
        assert answer.status_code == 422, answer.text
        return [tuple(map(str, fault["loc"])) for fault in answer.json()["detail"]]

    return post


def test_a_job_on_several_datasets_in_epochs_is_answered_as_it_was_asked_for(
    http: httpx.Client, payload: Payload
) -> None:
    asked = {
        "epochs": 2,
        "val_split": "last",
        "warmup_steps": 3,
        "system_prompt": "Be brief.",
        "loss_on": "last_answer",
    }
    job = http.post("/jobs", json=payload(more_dataset_ids=["more"], project_id="p", hyperparams=asked)).json()
    assert (job["dataset_id"], job["more_dataset_ids"], job["project_id"]) == (DATA.id, [MORE.id], "p")
    assert asked.items() <= job["hyperparams"].items()
    assert "steps" not in job["hyperparams"]
    assert job["total_steps"] > 0
    assert http.get(f"/jobs/{job['id']}").json()["more_dataset_ids"] == [MORE.id]


def test_what_does_not_fit_is_refused_with_its_place(refused: Callable[..., list[tuple[str, ...]]]) -> None:
    assert refused(hyperparams={"epochs": 2, "steps": 5}) == [("body", "hyperparams", "epochs")]
    assert refused(hyperparams={"epochs": 0}) == [("body", "hyperparams", "epochs")]
    assert refused(more_dataset_ids=[DATA.id]) == [("body", "more_dataset_ids", "0")]
    assert refused(more_dataset_ids=["more"] * 32) == [("body", "more_dataset_ids")]
    assert refused(project_id="") == [("body", "project_id")]
