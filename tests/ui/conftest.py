"""A service with a catalogue but without a training stack, and runs that are written as a supervisor would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from store import catalog
from tests.ui.driving import Runs


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service on a fresh data folder; its newest model and dataset are both called `starter`."""
    opened = Service(Home(tmp_path / "home"), config=Settings())
    model = catalog.BaseModel("model-1", "llama", "starter", 0, 1_500_000, "float32", "/nowhere", "test", 1.0)
    dataset = catalog.Dataset(
        "data-1", "starter", 0, "messages", 60, 1, 9000, "0" * 64, "/nowhere", "test", "ready", 1.0
    )
    with opened.store.write() as db:
        catalog.add_base_model(db, model)
        catalog.add_dataset(db, dataset)
    yield opened
    opened.close()


@pytest.fixture
def runs(service: Service) -> Runs:
    """Writes runs into the service's store."""
    return Runs(service)
