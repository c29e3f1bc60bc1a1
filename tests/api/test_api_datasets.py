"""Datasets over HTTP: registered from any file, inspected as a model will see them, refused in words."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from tests import tiny


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Service]:
    """A service whose model and dataset are real, in place of the package's."""
    folder = tmp_path_factory.mktemp("home")
    opened = Service(Home(folder / "data"), config=Settings())
    opened.add_model(str(tiny_model), "tiny")
    opened.add_dataset(str(tiny.make_rows(folder / "sums.jsonl")), "sums")
    yield opened
    opened.close()


def test_a_dataset_is_shown_as_a_model_will_see_it(http: httpx.Client, service: Service) -> None:
    entry, model = service.dataset("sums"), service.model("tiny")
    answer = http.get(f"/api/datasets/{entry.id}/inspect", params={"model": "tiny", "seq_len": 128})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["dataset_id"], found["model_id"], found["dataset"], found["model"]) == (
        entry.id,
        model.id,
        "sums",
        "tiny",
    )
    assert (found["rows"], found["bad"], found["stops"], found["seq_len"]) == (60, [], "", 128)
    assert found["trained_share"] == found["trained_tokens"] / found["tokens"]
    (sequence,) = found["batch"]
    assert sum(document["tokens"] for document in sequence["documents"]) <= 128
    texts = [part["text"] for document in sequence["documents"] for part in document["stretches"]]
    assert any(text.startswith("The sum of") and text.endswith("<|im_end|>") for text in texts)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({}, 422, "Field required"),
        ({"model": "tinny"}, 400, "Did you mean 'tiny'?"),
        ({"model": "tiny", "seq_len": 3}, 422, "greater than or equal to 16"),
        ({"model": "tiny", "seq_len": "long"}, 422, "valid integer"),
        ({"model": "tiny", "format": "xml"}, 422, "'messages'"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    http: httpx.Client, service: Service, query: dict[str, Any], status: int, words: str
) -> None:
    answer = http.get(f"/datasets/{service.dataset('sums').id}/inspect", params=query)
    assert answer.status_code == status
    assert words in answer.text


@pytest.mark.parametrize("name", [str(uuid.UUID(int=9)), "sums", "..%2f..%2fstore.db"])
def test_a_dataset_that_is_not_there_is_404(http: httpx.Client, name: str) -> None:
    assert http.get(f"/datasets/{name}/inspect", params={"model": "tiny"}).status_code == 404


def test_rows_of_another_format_are_bad_and_say_why(http: httpx.Client, service: Service) -> None:
    query = {"model": "tiny", "format": "text"}
    found = http.get(f"/datasets/{service.dataset('sums').id}/inspect", params=query).json()
    assert found["bad_rows"] == 60
    assert found["bad"][0]["places"][0] == "line 1"
    assert 'lacks "text", which the format text needs' in found["stops"]
    assert found["batch"] == []


def test_a_key_without_the_scope_may_not_look(http: httpx.Client, key_with: Callable[..., dict[str, str]]) -> None:
    url = str(http.base_url) + f"/datasets/{uuid.UUID(int=9)}/inspect?model=tiny"
    assert httpx.get(url, headers=key_with("train"), trust_env=False).status_code == 403


def test_a_folder_is_registered_with_its_format_forced_and_its_bad_rows_dropped(
    http: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "instruction": "b", "output": "c"}) + "\n{}\n")
    (tmp_path / "b.csv").write_text("text\nd\n")
    request = {"name": "mixed", "path": str(tmp_path)}
    refused = http.post("/datasets", json=request)
    assert refused.status_code == 400
    assert "a.jsonl line 2: has no field" in refused.json()["detail"]
    made = http.post("/datasets", json={**request, "format": "text", "drop_bad": True}).json()
    assert (made["format"], made["rows"], made["facts"]["dropped"]) == ("text", 2, 1)
    assert made["facts"]["reasons"][0].startswith("a.jsonl line 2: ")
    assert made in http.get("/datasets").json()
    assert http.post("/datasets", json={**request, "format": "xml"}).status_code == 422
