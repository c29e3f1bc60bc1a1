"""Runs that may only take so much: saved and stopped, with the reason. The worker is a stand-in, the clock leaps."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.running.limits import Limits, worked_before
from engine.running.supervisor import Supervisor
from engine.service import Job, Service
from engine.settings import Settings
from store import attempts
from tests.conditions import eventually
from tests.crash import light


class Limited:
    """A run that waits at step 3 until it may go on, and a supervisor whose clocks the test puts forward."""

    def __init__(self, root: Path, **limits: Any) -> None:
        self._go = root / "go"
        executable = light.install(root / "bin", waits_at=3, waits_for=str(self._go), step_s=0.01)
        self.service = light.open_service(root / "home", executable, **limits)
        self.passed = self.slept = 0.0
        self.supervisor = self.supervise()
        self.id = light.submit(self.service, steps=100_000)

    def supervise(self) -> Supervisor:
        """Return a supervisor of this folder; the one before has to be closed."""
        return Supervisor(
            self.service,
            clock=lambda: time.time() + self.passed + self.slept,
            monotonic=lambda: time.monotonic() + self.passed,
        )

    def job(self) -> Job:
        """Return the run as it is now."""
        return self.service.job(self.id)

    def until_waiting(self) -> None:
        """Wait until the worker stands at step 3."""
        eventually(lambda: self.supervisor.tick() or self.job().step == 3, within=30, what="step 3")
        self.supervisor.tick()

    def leap(self, hours: float) -> None:
        """Let the run work for so many hours."""
        self.passed += hours * 3600
        self.supervisor.tick()

    def until_stopped(self) -> Job:
        """Let the worker heed what it was told, and wait for its end."""
        eventually(lambda: self.supervisor.tick() or self._told(), within=30, what="the signal")
        self._go.touch()
        eventually(lambda: self.supervisor.tick() or self.job().finished, within=30, what="the end")
        self._go.unlink()
        return self.job()

    def _told(self) -> bool:
        return any(one.stop_signalled_at for one in attempts.open_attempts(self.service.store.read()))

    def events(self) -> list[dict[str, Any]]:
        """Return what the history says of limits."""
        return [event.payload for event in self.service.events(self.id) if event.kind == "limit"]

    def close(self) -> None:
        """End it all."""
        self._go.touch()
        if not self.job().finished:
            self.service.cancel(self.id)
        eventually(lambda: self.supervisor.tick() or self.job().finished, within=30, what="the end")
        self.supervisor.close()
        self.service.close()


@pytest.fixture
def limited(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Limited]:
    made = Limited(tmp_path, **request.param)
    yield made
    made.close()


@pytest.mark.parametrize("limited", [{"max_hours": 2.0}], indirect=True)
def test_a_run_that_has_had_its_hours_is_saved_and_stopped_and_retry_gives_it_as_many_again(limited: Limited) -> None:
    limited.until_waiting()
    limited.leap(1.9)
    assert not limited.job().stop_requested
    limited.leap(0.2)
    assert limited.job().stop_requested
    stopped = limited.until_stopped()
    assert (stopped.state, stopped.retries) == ("cancelled", 0)
    assert stopped.last_checkpoint_step == stopped.step >= 3
    (told,) = limited.events()
    assert told["limit"] == "max_hours"
    assert told["why"].startswith("it has worked for 2.1 h, the max_hours of the settings; it saves and stops. ")
    assert f"fusion-tui retry {limited.id[:8]}" in told["why"]
    limited.service.retry(limited.id)
    eventually(lambda: limited.supervisor.tick() or limited.job().step > stopped.step, within=30, what="more steps")
    limited.leap(1.9)
    assert not limited.job().stop_requested
    limited.leap(0.2)
    assert limited.job().stop_requested
    assert len(limited.events()) == 2


@pytest.mark.parametrize("limited", [{"max_usd": 3.0, "usd_per_gpu_hour": 1.5}], indirect=True)
def test_a_run_that_has_cost_its_dollars_is_stopped_whoever_supervises_and_whatever_the_clock_says(
    limited: Limited,
) -> None:
    limited.until_waiting()
    limited.slept += 50 * 3600  # the machine slept, or its clock was set
    limited.supervisor.tick()
    assert not limited.job().stop_requested
    # Of a worker that was heard of an hour ago, that hour counts for a supervisor that comes now.
    limited.supervisor.close()
    with limited.service.store.write() as db:
        (attempt,) = attempts.open_attempts(db)
        attempts.update(db, attempt.job_id, attempt.fence, heard_at=attempt.started_at + 3600)
    limited.supervisor = limited.supervise()
    limited.supervisor.tick()
    limited.leap(0.9)
    assert not limited.job().stop_requested
    limited.leap(0.2)
    assert limited.job().stop_requested
    assert limited.events()[0]["why"].startswith("it has cost $3.15 (2.1 h at $1.5), the max_usd of the settings; ")
    assert limited.until_stopped().state == "cancelled"


@pytest.mark.parametrize("limited", [{}], indirect=True)
def test_without_a_limit_a_run_works_for_as_long_as_it_needs(limited: Limited) -> None:
    limited.until_waiting()
    limited.leap(10_000)
    limited.supervisor.tick()
    assert not limited.job().stop_requested


@pytest.mark.parametrize("limited", [{}], indirect=True)
def test_the_hours_of_workers_that_were_lost_count_and_those_before_a_retry_do_not(limited: Limited) -> None:
    store, job_id = limited.service.store, limited.id
    begun = [("lost", 1000.0, 4600.0), ("lost", 10_000.0, 11_800.0), ("unstarted", 20_000.0, None)]
    with store.write() as db:
        for fence, (outcome, started, heard) in enumerate(begun, start=1):
            db.conn.execute("UPDATE jobs SET fence = ? WHERE id = ?", [fence, job_id])
            attempts.begin(db, job_id, fence, device="cpu", directory="/x", start_step=0, now=started)
            attempts.update(db, job_id, fence, gate_opened=int(heard is not None), heard_at=heard)
            attempts.close(db, job_id, fence, outcome=outcome, detail=None, now=90_000.0)
        attempts.begin(db, job_id, 4, device="cpu", directory="/x", start_step=0, now=30_000.0)
    now = attempts.get(store.read(), job_id, 4)
    assert now is not None
    assert worked_before(store.read(), now) == 3600 + 1800
    with store.write() as db:
        said = '{"from": "failed", "to": "queued", "why": "retry"}'
        db.conn.execute("INSERT INTO events (job_id, ts, kind, payload) VALUES (?, 9000, 'state', ?)", [job_id, said])
    assert worked_before(store.read(), now) == 1800
    with store.write() as db:
        db.conn.execute("DELETE FROM attempts")
        db.conn.execute("UPDATE jobs SET fence = 0")


def test_a_limit_in_dollars_without_a_price_is_warned_of(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Limits(service.store, Settings(max_usd=5.0))
    assert "set it to what an hour of the card costs" in caplog.text
