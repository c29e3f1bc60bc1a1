"""What the tests of notices work with: a data folder at rest, and servers of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.service import Service
from tests.crash import light
from tests.engine.running.hearing import Server


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Return what starts a webhook that gives these answers."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made: list[Server] = []

    def serve(*answers: int) -> Server:
        made.append(Server(answers or (200,)))
        return made[-1]

    yield serve
    for server in made:
        server.close()


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Service]:
    """A data folder with stand-ins for workers, on which nobody works."""
    service = light.open_service(tmp_path / "home", light.install(tmp_path / "bin"))
    yield service
    service.close()
