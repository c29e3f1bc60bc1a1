"""The supervisor that leaves when nobody needs it: not while it cannot tell, and never deaf to a signal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.running.supervisor import Supervisor
from engine.service import Service
from fusion_tui import daemon
from store import StoreBusy, attempts
from tests.conditions import eventually
from tests.crash import light


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A data folder with light workers."""
    opened = light.open_service(tmp_path / "home", light.install(tmp_path / "bin"))
    yield opened
    opened.close()


class Late(Supervisor):
    """A real supervisor, with something that happens between its leaving and the next look at the queue."""

    then: Callable[[], object] = staticmethod(lambda: None)
    rounds = 0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what comes too late then comes once."""
        super().run(stop)
        self.rounds += 1
        if self.rounds == 1:
            self.then()


class Unsure(Supervisor):
    """A real supervisor, whose store is busy at the first looks."""

    looks = 0

    def busy(self) -> bool:
        """Say what is known, from the third look on."""
        self.looks += 1
        if self.looks < 3:
            raise StoreBusy("The job store is busy. Try again in a moment.")
        return super().busy()


def carry_out(service: Service, supervisor: Supervisor, told: threading.Event) -> None:
    """Carry out the queue in a thread, until it leaves by itself."""
    thread = threading.Thread(target=daemon._carry_out, args=(service.home, supervisor, told, None, 0.0), daemon=True)
    thread.start()
    eventually(lambda: not thread.is_alive(), what="the leaving")
    supervisor.close()
    assert not service.home.supervisor_info.exists()


def test_a_job_that_came_while_it_left_keeps_it_until_that_is_done(service: Service) -> None:
    supervisor = Late(service)
    supervisor.then = lambda: light.submit(service)
    carry_out(service, supervisor, threading.Event())
    (job,) = service.jobs()
    assert (job.state, supervisor.rounds) == ("completed", 2)


def test_a_signal_that_came_while_it_left_is_heard(service: Service) -> None:
    supervisor, told = Late(service), threading.Event()
    supervisor.then = lambda: (light.submit(service), told.set())
    carry_out(service, supervisor, told)
    (job,) = service.jobs()
    assert (job.state, supervisor.rounds) == ("queued", 1)
    assert attempts.open_attempts(service.store.read()) == []


def test_a_store_that_was_busy_at_a_look_counts_as_needed_and_the_next_look_is_made(service: Service) -> None:
    supervisor = Unsure(service)
    carry_out(service, supervisor, threading.Event())
    assert supervisor.looks >= 3
