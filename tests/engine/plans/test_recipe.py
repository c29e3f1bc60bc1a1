"""What the recipe adds to a request: the rate for its batch, a length for its rows, what saves memory; never more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import resources
from engine.catalog import STARTER
from engine.plans import recipe
from engine.plans.recommend import learning_rate
from engine.service import Service
from store import catalog
from tests.engine import shapes
from tests.engine.nvml import Card, Driver
from tests.store.entries import base_model

GB = 10**9


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card("card", total=80 * GB, used=0)
    monkeypatch.setattr(resources, "_nvml", lambda: Driver(card))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return card


@pytest.fixture
def llama(service: Service, tmp_path: Path) -> catalog.BaseModel:
    """A model of 8 billion parameters, of which there is the config alone."""
    (tmp_path / "config.json").write_text(json.dumps(shapes.LLAMA_8B | {"max_position_embeddings": 512}))
    entry = base_model(id="of-llama", name="llama", path=str(tmp_path), family="llama", params=8_030_261_248)
    with service.store.write() as db:
        catalog.add_base_model(db, entry)
    return entry


def complete(service: Service, model: catalog.BaseModel, *datasets: Any, **settings: Any) -> dict[str, Any]:
    return recipe.complete(service.store.read(), settings, model, datasets or [service.dataset(STARTER)])


def test_what_is_said_stands(service: Service, card: Card, llama: catalog.BaseModel) -> None:
    said = {"lr": 0.5, "seq_len": 77, "batch_size": 3}
    assert complete(service, llama, **said) == said


def test_the_rate_is_that_of_so_many_rows_a_step(service: Service, card: Card, llama: catalog.BaseModel) -> None:
    from engine.plans.advice import model_size

    size = model_size(llama)
    alone = complete(service, llama, batch_size=8, grad_accum=4, packing=False)
    assert alone["lr"] == learning_rate(size, 32)
    packed = complete(service, llama, batch_size=8, grad_accum=4, packing=True)
    assert packed["lr"] == learning_rate(size, 128)  # several rows to a sequence
    full = complete(service, llama, batch_size=32, packing=False, training_type="full", load_in_4bit=False)
    assert full["lr"] == learning_rate(size, 32, full=True)


def test_the_length_holds_the_longest_dataset_and_what_is_put_before(
    service: Service, card: Card, llama: catalog.BaseModel, tmp_path: Path
) -> None:
    long = tmp_path / "long.jsonl"
    long.write_text("\n".join(json.dumps({"text": "word " * 250}) for _ in range(50)))
    short = service.dataset(STARTER)
    entry = replace(short, id="long", name="long", path=str(long), rows=50)
    lengths = [complete(service, llama, *data)["seq_len"] for data in ([short], [entry], [short, entry])]
    assert lengths[0] < lengths[1] == lengths[2]
    asked = complete(service, llama, system_prompt="x" * 4 * 128)["seq_len"]
    assert asked - lengths[0] in (128, 256)
    assert complete(service, llama, system_prompt="x" * 40_000)["seq_len"] == 512  # what the model reads at most


def test_what_does_not_fit_the_device_is_made_to_fit(service: Service, card: Card, llama: catalog.BaseModel) -> None:
    said = {"batch_size": 4, "lora_rank": 16, "packing": False}
    assert complete(service, llama, **said).keys() == {*said, "lr", "seq_len"}
    card.total = 12 * GB
    made = complete(service, llama, **said)
    assert made["load_in_4bit"] is True
    assert made["batch_size"] * made.get("grad_accum", 1) == 4
    card.total = 2 * GB
    assert complete(service, llama, **said).keys() == {*said, "lr", "seq_len"}  # for the submit to refuse, in words
