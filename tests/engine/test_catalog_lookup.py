"""Finding an entry by id, name or prefix reads a few rows, and finds what reading all of them would."""

from __future__ import annotations

import uuid

import pytest

from engine import catalog
from engine.errors import UnknownReference
from engine.service import Service
from store import catalog as entries
from tests.store.entries import base_model, dataset, model

PREFIX = "abcd"


@pytest.fixture
def filled(service: Service) -> Service:
    """A catalogue with several versions of a name, a name that is another's prefix, and ids that begin alike."""
    ids = [f"{PREFIX}{number}{uuid.uuid4()}" for number in range(3)]
    with service.store.write() as db:
        for number, entry_id in enumerate(ids):
            entries.add_base_model(db, base_model(id=entry_id, name=f"model{number % 2}"))
            entries.add_model(db, model(id=str(uuid.uuid4()), name=f"model{number % 2}"))
            entries.add_dataset(db, dataset(id=entry_id, name=f"data{number % 2}"))
        entries.add_model(db, model(id=str(uuid.uuid4()), name=PREFIX))  # a name that ids begin with
    return service


def references(service: Service) -> list[str]:
    db = service.store.read()
    known = [*entries.base_models(db), *entries.models(db), *entries.datasets(db)]
    ids = {text for one in known for text in (one.id, one.id[:3], one.id[:4], one.id[:5], one.id[:20])}
    names = {text for one in known for text in (one.name, one.name[:-1], f"{one.name}x", one.name.upper())}
    return sorted(ids | names | {"", "%", "_", "abc_", "\U0010ffff", "é" * 5})


def outcome(pick: object, *arguments: object) -> str:
    try:
        return pick(*arguments).id  # type: ignore[operator, no-any-return]
    except UnknownReference as error:
        return str(error)


def test_every_reference_finds_what_a_look_at_all_entries_finds(filled: Service) -> None:
    db = filled.store.read()
    models, datasets = [*entries.base_models(db), *entries.models(db)], entries.datasets(db)
    found = []
    for reference in references(filled):
        here = outcome(catalog.find_model, db, reference)
        there = outcome(catalog._pick, models, reference, "model", "")
        assert here.startswith(there), reference
        here_too = outcome(catalog.find_dataset, db, reference)
        assert here_too.startswith(outcome(catalog._pick, datasets, reference, "dataset", "")), reference
        found += [here, here_too]
    assert sum(len(one) >= 36 and " " not in one for one in found) > 20
    assert any("fits 3" in one for one in found)


def test_a_name_is_free_until_a_model_or_a_run_has_it(filled: Service) -> None:
    db = filled.store.read()
    assert {"model0", "model1"} <= catalog.names_taken(db, "model")
    assert PREFIX not in catalog.names_taken(db, "model")
    job = filled.submit(
        {
            "type": "finetune",
            "idempotency_key": "k",
            "base_model_id": "model0",
            "dataset_id": "data0",
            "hyperparams": {"output_name": "coming"},
        }
    ).job
    assert "coming" in catalog.names_taken(db, "c")
    filled.cancel(job.id)
    assert "coming" not in catalog.names_taken(db, "c")
