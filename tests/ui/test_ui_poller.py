"""What the poller tells when one of the things it looks at fails: the others are told as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.message import Message

from engine.errors import EngineError
from engine.service import Service
from fusion_tui.messages import Overview, OverviewChanged, Supervision
from fusion_tui.poller import DEVICES_EVERY_S, Poller
from tests.ui.driving import Runs

SILENT = "The NVIDIA driver does not answer (GPU is lost)."


class Told:
    """A poller whose clock the test moves, and the overviews that it posted."""

    def __init__(self, service: Service) -> None:
        self.now = 100.0
        self.supervision = Supervision(running=True)
        self.overviews: list[Overview] = []
        self.poller = Poller(service, self._heard, lambda: self.supervision, clock=lambda: self.now)

    def _heard(self, message: Message) -> None:
        if isinstance(message, OverviewChanged):
            self.overviews.append(message.overview)

    def look(self, *, after: float = 0.0) -> Overview:
        """Poll once and return what is known by then."""
        self.now += after
        self.poller.poll()
        return self.overviews[-1]


@pytest.fixture
def told(service: Service) -> Told:
    """A poller that has not looked yet."""
    return Told(service)


def silent(monkeypatch: pytest.MonkeyPatch, service: Service) -> Callable[[], None]:
    """Have the driver not answer until the returned call."""

    def lost() -> list[Any]:
        raise EngineError(SILENT)

    found = service.devices
    monkeypatch.setattr(service, "devices", lost)
    return lambda: monkeypatch.setattr(service, "devices", found)


def test_who_supervises_is_told_where_the_driver_does_not_answer(
    service: Service, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent(monkeypatch, service)
    assert told.look().supervision == Supervision(running=True)
    told.supervision = Supervision(running=False)
    assert told.look(after=DEVICES_EVERY_S).supervision == Supervision(running=False)


def test_an_error_stands_until_the_same_look_succeeds(
    service: Service, runs: Runs, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = silent(monkeypatch, service)
    assert told.look().error == SILENT
    runs.queue("one")
    for _ in range(12):  # through several looks at the machine, and more at the store
        told.look(after=DEVICES_EVERY_S / 4)
    first = next(number for number, one in enumerate(told.overviews) if one.error)
    assert {one.error for one in told.overviews[first:]} == {SILENT}
    assert [job.name for job in told.overviews[-1].jobs] == ["one"]
    mended()
    assert told.look().error == SILENT  # it was not looked at again yet
    assert told.look(after=DEVICES_EVERY_S).error == ""


def test_errors_of_several_looks_are_told_together_and_go_one_by_one(
    service: Service, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.look()
    silent(monkeypatch, service)
    away = service.home.store.rename(service.home.root / "away")
    error = told.look(after=DEVICES_EVERY_S).error
    assert "is gone" in error
    assert error.endswith(SILENT)
    away.rename(service.home.store)
    assert told.look().error == SILENT


def test_a_store_that_fails_at_first_counts_as_never_read(service: Service, runs: Runs, told: Told) -> None:
    runs.queue("one")
    away = service.home.store.rename(service.home.root / "away")
    found = told.look()
    assert (found.loaded, bool(found.error)) == (False, True)
    away.rename(service.home.store)
    found = told.look()
    assert (found.loaded, found.error, found.counts) == (True, "", {"queued": 1})
    away = service.home.store.rename(service.home.root / "away")
    assert told.look().loaded
    away.rename(service.home.store)
