"""A card whose memory is not back yet takes no run; the wait has an end, and who holds the memory is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.resources import Device
from engine.running.holds import RELEASE_SECONDS, RELEASE_SLACK
from engine.running.supervisor import Supervisor
from engine.service import Service
from tests.conditions import eventually
from tests.crash import light

GB = 10**9


class Card:
    """One card whose load the test sets, a supervisor on it, and a clock that leaps."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.device = Device("cuda:0", "RTX", 1 * GB, 24 * GB)
        self.passed = 0.0
        self.supervisor = Supervisor(
            service, devices=lambda: [self.device], monotonic=lambda: time.monotonic() + self.passed
        )

    def run_one(self, *, left: int) -> str:
        """Carry out a run whose worker, once gone, leaves so many bytes of the card taken."""
        job_id = light.submit(self.service)
        self.supervisor.tick()
        self.device = replace(self.device, memory_used=self.device.memory_used + left)
        eventually(lambda: self.supervisor.tick() or self.service.job(job_id).finished, what="the end")
        return job_id

    def told(self, job_id: str) -> list[str]:
        """Return what a run's history says of memory that was kept."""
        return [event.payload["why"] for event in self.service.events(job_id) if event.kind == "memory_kept"]


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Card]:
    service = light.open_service(tmp_path / "home", light.install(tmp_path / "bin"))
    made = Card(service)
    yield made
    made.supervisor.close()
    service.close()


def test_the_next_run_waits_until_the_memory_of_the_last_one_is_back(card: Card) -> None:
    first = card.run_one(left=8 * GB)
    second = card.service.job(light.submit(card.service))
    for _ in range(3):
        card.supervisor.tick()
    assert card.service.job(second.id).state == "queued"
    card.device = replace(card.device, memory_used=1 * GB + RELEASE_SLACK)
    card.supervisor.tick()
    assert card.service.job(second.id).fence == 1
    eventually(lambda: card.supervisor.tick() or card.service.job(second.id).finished, what="the end")
    assert card.told(first) == []


def test_memory_that_does_not_come_back_is_told_and_waited_for_no_longer(card: Card) -> None:
    first = card.run_one(left=8 * GB)
    second = light.submit(card.service)
    card.passed += RELEASE_SECONDS - 2
    card.supervisor.tick()
    assert card.service.job(second).state == "queued"
    card.passed += 3
    card.supervisor.tick()
    assert card.service.job(second).fence == 1
    assert card.told(first) == ["8.0 GB of RTX did not come back in 10 s; what holds it cannot be seen"]
    eventually(lambda: card.supervisor.tick() or card.service.job(second).finished, what="the end")


def test_memory_that_came_back_is_not_waited_for(card: Card) -> None:
    card.run_one(left=0)
    second = light.submit(card.service)
    card.supervisor.tick()
    assert card.service.job(second).fence == 1
    eventually(lambda: card.supervisor.tick() or card.service.job(second).finished, what="the end")


def test_memory_that_someone_took_long_after_a_run_is_not_said_to_be_the_runs(card: Card) -> None:
    first = card.run_one(left=0)
    card.passed += 3600
    card.device = replace(card.device, memory_used=card.device.memory_used + 8 * GB)
    second = light.submit(card.service)
    eventually(lambda: card.supervisor.tick() or card.service.job(second).finished, what="the end")
    assert card.told(first) == []


def test_a_whole_queue_that_waits_is_told_in_one_transaction(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [light.submit(card.service) for _ in range(30)]
    monkeypatch.setattr(card.supervisor, "_free_bytes", lambda path: 0)
    writes, real = [], card.service.store.write
    monkeypatch.setattr(card.service.store, "write", lambda: writes.append(1) or real())
    card.supervisor.tick()
    assert all((card.service.job(job_id).hold or "").startswith("disk_full: ") for job_id in ids)
    assert len(writes) == 1
    # And for a while nobody looks at it again.
    asked: list[int] = []
    monkeypatch.setattr("engine.running.supervisor.jobs.next_queued", lambda *_, **__: asked.append(1) or [])
    card.supervisor.tick()
    assert asked == []
