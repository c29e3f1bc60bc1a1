"""POST /jobs/plan: the memory that a job would need, in the shape that the document says, and nothing submitted."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from engine.jobs.hyperparams import FinetuneHyperparams
from engine.plans import memory, model_shape
from engine.service import Service
from store import catalog
from tests.engine import shapes
from tests.store.entries import base_model

FIELDS = {
    *("needed", "planned", "correction", "runs", "mode", "phase", "parts", "phases", "device", "total"),
    *("free", "verdict", "fits", "summary", "alternatives", "holders", "settled"),
}


@pytest.fixture(scope="module")
def llama(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model in the catalogue whose folder holds a small Llama's config alone."""
    folder: Path = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shapes.SMOLLM2_135M))
    entry = base_model(name="small", path=str(folder))
    with service.store.write() as db:
        catalog.add_base_model(db, entry)
    return entry.id


@pytest.mark.parametrize("mount", ["", "/api"])
def test_a_plan_has_every_field_and_makes_no_job(
    http: httpx.Client, service: Service, payload, llama: str, mount: str
) -> None:
    before = len(service.jobs())
    answer = http.post(f"{mount}/jobs/plan", json=payload(base_model_id=llama, hyperparams={}))
    plan = answer.json()
    assert (answer.status_code, set(plan)) == (200, FIELDS)
    assert plan["planned"] == sum(plan["parts"].values()) == plan["phases"][plan["phase"]]
    assert plan["total"] >= plan["free"] > 0
    assert len(service.jobs()) == before


def test_what_was_left_open_is_told_as_it_would_run(http: httpx.Client, llama: str) -> None:
    asked = {"type": "train", "base_model_id": llama}
    assert http.post("/jobs/plan?card_gb=80", json=asked).json()["settled"] == {}
    plan = http.post("/jobs/plan?card_gb=2", json=asked).json()
    assert 0 < plan["settled"]["growth_ratio"] < 0.5
    assert plan["fits"]


def test_key_and_dataset_may_be_left_out(http: httpx.Client, llama: str) -> None:
    assert http.post("/jobs/plan", json={"type": "finetune", "base_model_id": llama}).status_code == 200


def test_a_plan_for_another_card_names_what_would_fit_it(http: httpx.Client, payload, llama: str) -> None:
    settings = {"batch_size": 8, "seq_len": 4096}
    answer = http.post("/jobs/plan?card_gb=4", json=payload(base_model_id=llama, hyperparams=settings))
    plan = answer.json()
    expected = memory.plan(
        model_shape.of_config(shapes.SMOLLM2_135M), FinetuneHyperparams(**settings), "cuda", sixteen_bits=True
    )
    assert (plan["needed"], plan["total"], plan["verdict"], plan["fits"]) == (
        expected.needed,
        4 * 10**9,
        "too_large",
        False,
    )
    assert plan["alternatives"][0]["changes"] == {"batch_size": 1, "grad_accum": 8}
    assert all(alternative["needed"] <= 4 * 10**9 for alternative in plan["alternatives"])


def test_the_plan_is_part_of_the_job(http: httpx.Client, payload, llama: str) -> None:
    asked = payload(base_model_id=llama)
    plan = http.post("/jobs/plan", json=asked).json()
    job = http.post("/jobs", json=asked).json()
    assert job["plan"] == {key: plan[key] for key in job["plan"]}
    assert http.get(f"/jobs/{job['id']}").json()["plan"] == job["plan"]
    assert http.post("/jobs", json=payload()).json()["plan"] is None  # its model has no files


@pytest.mark.parametrize(
    ("query", "change", "status"),
    [
        ("", {"hyperparams": {"steps": 0}}, 422),
        ("?card_gb=0", {}, 422),
        ("?card_gb=nan", {}, 422),
        ("", {"base_model_id": "nonesuch"}, 400),
        ("", {"base_model_id": 7}, 422),
        ("", {"dataset_id": "nonesuch"}, 400),
        ("", {}, 400),  # a model without files has no plan
    ],
)
def test_what_cannot_be_planned_is_answered_as_everywhere(
    http: httpx.Client, payload, query: str, change: dict, status: int
) -> None:
    answer = http.post(f"/jobs/plan{query}", json=payload(**change))
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])


def test_a_plan_needs_the_scope_that_a_job_needs(bare: httpx.Client, payload, key_with, llama: str) -> None:
    asked = payload(base_model_id=llama)
    assert bare.post("/jobs/plan", json=asked).status_code == 401
    assert bare.post("/jobs/plan", json=asked, headers=key_with("read")).status_code == 403
    assert bare.post("/jobs/plan", json=asked, headers=key_with("train")).status_code == 200
