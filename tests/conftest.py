"""What several test packages share: a tiny model, a data folder with it in its catalogue, a real supervisor."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui.api.server import ApiServer
from tests import tiny, worker
from tests.supervised import Supervised, Supervision, working

# Two training processes that each take both cores slow each other many times over; CI has two.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, made by a process with the libraries loaded, so that light tests stay light."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    making = worker.begin(tiny.make_model, folder)
    making.join()
    assert making.exitcode == 0, "see the output above"
    return folder


@pytest.fixture
def service(tmp_path: Path, tiny_model: Path) -> Iterator[Service]:
    """A service on a fresh data folder, with the model `tiny` and the dataset `sums`."""
    opened = Service(Home(tmp_path / "home"), config=Settings())
    opened.add_model(str(tiny_model), "tiny")
    opened.add_dataset(str(tiny.make_rows(tmp_path / "sums.jsonl")), "sums")
    yield opened
    opened.close()


@pytest.fixture
def supervised(service: Service) -> Iterator[Supervised]:
    """The same service with a real supervisor process and API behind it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = Supervised(service, port)
    running.start()
    yield running
    running.clear_away()


@pytest.fixture
def attended(service: Service) -> Iterator[Supervision]:
    """The same service with a supervisor in this process, for tests that do nothing to it but to its workers."""
    supervision = Supervision(service)
    with working(service):
        yield supervision
    supervision.kill_all()


@pytest.fixture
def served(service: Service) -> Iterator[ApiServer]:
    """The same service with an API and such a supervisor."""
    api = ApiServer(service, "127.0.0.1", 0)
    api.start()
    with working(service):
        yield api
    api.stop()
