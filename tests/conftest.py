"""What several test packages share: a tiny model, a data folder with it in its catalogue, a real supervisor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.paths import Home
from engine.running.supervisor import Supervisor
from engine.service import Service
from engine.settings import Settings
from fusion_tui.api.server import ApiServer
from tests import tiny, worker
from tests.supervised import Supervised

# Two training processes that each take both cores slow each other many times over; CI has two.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, made in a process of its own so that tests that need no torch stay light."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    script = "import sys, pathlib; from tests import tiny; tiny.make_model(pathlib.Path(sys.argv[1]))"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, cwd=root)
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
def served(service: Service) -> Iterator[ApiServer]:
    """The same service with an API and a supervisor in this process, whose workers need no time to load their
    libraries."""
    api = ApiServer(service, "127.0.0.1", 0)
    api.start()
    working, stop = Supervisor(service, launch=worker.launch), threading.Event()
    thread = threading.Thread(target=working.run, args=(stop,))
    thread.start()
    yield api
    stop.set()
    thread.join()
    working.close()
    api.stop()
