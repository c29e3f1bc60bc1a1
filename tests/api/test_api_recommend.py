"""`POST /training/recommend`: the documented fields to the letter, the additions beside them, and bad requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from engine.catalog import STARTER_DATASET_ID, STARTER_MODEL_ID
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.service import Service
from fusion_tui import daemon
from fusion_tui.cli import main
from store import catalog
from tests.api.conftest import BASE, DATA, TRAINED

STARTER = {"base_model_id": STARTER_MODEL_ID, "dataset_id": STARTER_DATASET_ID}


def test_the_answer_has_the_documented_fields(http: httpx.Client) -> None:
    answer = http.post("/training/recommend", json=STARTER)
    assert answer.status_code == 200
    body = answer.json()
    documented = {"model_params", "dataset_tokens_est", "recommended", "windows", "notes", "disclaimer"}
    assert set(body) == documented | {"type", "memory"}
    ours = {"batch_size", "grad_accum"}
    assert set(body["recommended"]) == {"turns", "lr", "cycles", "steps_per_cycle", "seq_len"} | ours
    assert set(body["windows"]) == set(body["recommended"])
    for name, window in body["windows"].items():
        assert 0 < window["min"] <= body["recommended"][name] <= window["max"]
    assert body["model_params"] == 4_737_792
    assert body["dataset_tokens_est"] == pytest.approx(120_000, rel=0.1)
    assert body["notes"]
    assert body["disclaimer"]


def test_for_a_finetune_the_answer_is_a_request_that_can_be_sent(http: httpx.Client) -> None:
    body = http.post("/training/recommend", json={**STARTER, "type": "finetune"}).json()
    settings = body["recommended"]
    assert {"steps", "lr", "seq_len", "batch_size", "grad_accum", "lora_rank", "training_type"} <= set(settings)
    assert FinetuneHyperparams.model_validate(settings).model_dump(include=set(settings)) == settings
    memory = body["memory"]
    assert set(memory) == {"needed_gb", "free_gb", "fits", "plan"}
    assert memory["plan"]["needed"] == pytest.approx(memory["needed_gb"] * 1e9, abs=1e7)
    request = {"type": "finetune", "idempotency_key": "as recommended", **STARTER, "hyperparams": settings}
    job = http.post("/jobs", json=request)
    assert job.status_code == 201
    assert "advice" not in [event["kind"] for event in http.get(f"/jobs/{job.json()['id']}/events").json()]


@pytest.mark.parametrize("size", [{"dataset_tokens": 5_000_000}, {"dataset_bytes": 20_000_000}])
def test_sizes_alone_are_enough(http: httpx.Client, size: dict[str, int]) -> None:
    body = http.post("/api/training/recommend", json={"params": 8_000_000_000, **size}).json()
    assert (body["model_params"], body["dataset_tokens_est"], body["memory"]) == (8_000_000_000, 5_000_000, None)
    assert any("The hidden size 4096 is estimated" in note for note in body["notes"])


def test_an_own_model_and_one_whose_files_are_gone_get_an_answer(http: httpx.Client) -> None:
    for model in ({"source_model_id": TRAINED.id}, {"base_model_id": BASE.name}):
        body = http.post("/training/recommend", json={**model, "dataset_id": DATA.id, "type": "finetune"}).json()
        assert (body["model_params"], body["memory"]) == (1234, None)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 422, "name a model, or give params"),
        ({"base_model_id": STARTER_MODEL_ID}, 422, "give dataset_tokens or dataset_bytes"),
        ({"params": 0, "dataset_tokens": 1}, 422, "params"),
        ({"params": True, "dataset_tokens": 1}, 422, "true and false are no numbers"),
        ({"params": 1e9, "dataset_tokens": -5}, 422, "dataset_tokens"),
        ({"params": "many", "dataset_tokens": 5}, 422, "params"),
        ({**STARTER, "type": "contract"}, 422, "type"),
        ({**STARTER, "colour": "red"}, 422, "colour"),
        ({**STARTER, "base_model_id": "nonesuch"}, 400, "No model is called 'nonesuch'"),
        ({**STARTER, "dataset_id": "nonesuch"}, 400, "No dataset is called 'nonesuch'"),
        ([1], 422, "object"),
    ],
)
def test_a_bad_request_is_refused_with_its_field(http: httpx.Client, body: Any, status: int, says: str) -> None:
    answer = http.post("/training/recommend", json=body)
    assert answer.status_code == status
    assert says in answer.text


def test_what_is_no_json_or_has_no_key_is_refused(http: httpx.Client, bare: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    assert http.post("/training/recommend", content=b"{", headers=headers).status_code == 400
    assert http.post("/training/recommend", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert bare.post("/training/recommend", json=STARTER).status_code == 401


def test_reading_is_all_that_the_key_must_allow(bare: httpx.Client, key_with: Callable[..., dict[str, str]]) -> None:
    assert bare.post("/training/recommend", json=STARTER, headers=key_with("read")).status_code == 200
    assert bare.post("/training/recommend", json=STARTER, headers=key_with("train")).status_code == 403


def test_a_submitted_rate_that_is_far_off_is_told_in_the_events_and_never_refused(
    http: httpx.Client, payload: Callable[..., dict[str, Any]]
) -> None:
    answer = http.post("/jobs", json=payload(base_model_id=STARTER_MODEL_ID, hyperparams={"lr": 0.5, "steps": 1}))
    assert answer.status_code == 201
    (told,) = [e for e in http.get(f"/jobs/{answer.json()['id']}/events").json() if e["kind"] == "advice"]
    assert "times the recommended" in told["payload"]["text"]


def test_the_command_line_gives_the_same_document(
    http: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_HOME", str(service.home.root))
    asked = ["recommend", "--model", "starter", "--dataset", "starter"]
    printed = CliRunner().invoke(main, [*asked, "--type", "train", "--json"])
    assert json.loads(printed.stdout) == http.post("/training/recommend", json=STARTER).json()
    table = CliRunner().invoke(main, asked)
    assert table.exit_code == 0
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["setting", "value", "window", "why"]
    assert [line.split()[0] for line in lines[1:4]] == ["steps", "lr", "seq_len"]
    assert lines[-1].startswith("$ fusion-tui submit finetune --model starter --dataset starter --set steps=")
    missing = CliRunner().invoke(main, ["recommend", "--model", "nope", "--dataset", "starter"])
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert CliRunner().invoke(main, ["recommend", "--model", "starter"]).exit_code == 2


def test_the_command_line_refuses_a_rate_that_diverges_unless_forced(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4096}))
    with service.store.write() as db:
        catalog.add_base_model(db, replace(BASE, id="big", name="big", params=8_000_000_000, path=str(tmp_path)))
    monkeypatch.setenv("FUSION_HOME", str(service.home.root))
    before = len(service.jobs())
    asked = ["submit", "finetune", "--model", "big", "--dataset", "starter", "--set", "lr=0.5"]
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code == 2
    assert "times the recommended" in refused.stderr
    assert "--force" in refused.stderr
    assert len(service.jobs()) == before
    monkeypatch.setattr(daemon, "ensure_running", lambda _: None)  # nobody is to work on it
    forced = CliRunner().invoke(main, [*asked, "--force"])
    assert (forced.exit_code, len(service.jobs())) == (0, before + 1)
    assert "Note: lr 0.5 is" in forced.stderr
