"""Workers that stand still: shown, and ended only where the user says so. The clocks leap, the stops are real."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import process
from engine.process import Identity
from engine.running import evidence
from engine.running.supervisor import Supervisor
from engine.service import Service
from engine.settings import Settings
from store import attempts
from tests import worker
from tests.conditions import eventually
from tests.crash import light


class Watched:
    """A run with its supervisor, whose clocks the test puts forward; they stand still while its worker does."""

    def __init__(self, service: Service, job_id: str, **options: Any) -> None:
        self.service = service
        self.job_id = job_id
        self._slept = self._passed = 0.0
        self._stopped_at: tuple[float, float] | None = None
        self.supervisor = Supervisor(
            service,
            clock=lambda: self._now()[0] + self._passed + self._slept,
            monotonic=lambda: self._now()[1] + self._passed,
            **options,
        )

    def _now(self) -> tuple[float, float]:
        return self._stopped_at or (time.time(), time.monotonic())

    def leap(self, seconds: float) -> None:
        """Let time pass, once all that was written by now is read."""
        for _ in range(2):
            self.supervisor.tick()
        self._passed += seconds
        self.supervisor.tick()

    def sleep(self, seconds: float) -> None:
        """Let the machine sleep: only the time of day goes on."""
        self._slept += seconds
        self.supervisor.tick()

    def worker(self) -> Identity:
        """Return the worker that the run has now."""
        found = attempts.open_attempts(self.service.store.read())[0]
        identity = evidence.worker(found)
        assert identity is not None
        return identity

    def until_stopped(self) -> Identity:
        """Wait until the run's worker stands still."""

        def stopped() -> bool:
            self.supervisor.tick()
            return self.hold() is None and process.is_stopped(self.worker())

        eventually(stopped, what="the stop")
        # However long the machine takes for the next rounds, only what the test lets pass counts as silence.
        self._stopped_at = self._now()
        return self.worker()

    def until_finished(self) -> None:
        """Let the run come to its end."""
        self._stopped_at = None
        eventually(lambda: self.supervisor.tick() or self.service.job(self.job_id).finished, within=90, what="the end")

    def hold(self) -> str | None:
        """Return what is said of the run."""
        return self.service.job(self.job_id).hold

    def stalls(self) -> list[str]:
        """Return what the history tells of stalls."""
        return [event.payload["why"] for event in self.service.events(self.job_id) if event.kind == "stalled"]


@pytest.fixture
def watched(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A run whose first worker stops at step 2; the parameter is the limit that the user set, in minutes."""
    executable = light.install(tmp_path / "bin", at_step=2, do="SIGSTOP", times=1)
    service = light.open_service(tmp_path / "home", executable, stall_limit_minutes=getattr(request, "param", 0.0))
    made = Watched(service, light.submit(service, steps=4))
    yield made
    for attempt in attempts.open_attempts(service.store.read()):
        if identity := evidence.worker(attempt):
            process.send(identity, signal.SIGKILL)
    made.supervisor.close()
    service.close()


def test_a_worker_that_stands_still_is_shown_once_and_left_alone(watched: Watched) -> None:
    stopped = watched.until_stopped()
    watched.leap(290)
    assert watched.hold() is None
    watched.leap(71)
    assert watched.hold() == (
        f"stalled: nothing heard for 6 min; last: training; its process is stopped (kill -CONT {stopped.pid})"
    )
    watched.leap(86_400)
    assert "nothing heard for 1446 min" in (watched.hold() or "")
    assert len(watched.stalls()) == 1
    assert process.is_alive(stopped)
    assert process.send(stopped, signal.SIGCONT)
    watched.until_finished()
    job = watched.service.job(watched.job_id)
    assert (job.state, job.retries, job.hold) == ("completed", 0, None)
    assert light.steps_of(watched.service, job.id) == [1, 2, 3, 4]


@pytest.mark.parametrize("watched", [10.0], indirect=True)
def test_where_the_user_set_a_limit_the_worker_is_ended_and_the_run_goes_on(watched: Watched) -> None:
    stopped = watched.until_stopped()
    watched.leap(590)
    assert process.is_alive(stopped)
    watched.leap(11)
    watched.until_finished()
    job = watched.service.job(watched.job_id)
    assert (job.state, job.retries) == ("completed", 1)
    first = light.history(watched.service, job.id)[0]
    assert (first.outcome, first.exit_code) == ("lost", -signal.SIGKILL)
    assert "nothing heard for 10 min, the stall_limit_minutes of the settings" in watched.stalls()[-1]
    causes = [event.payload.get("cause") for event in watched.service.events(job.id)]
    assert "stalled: it was silent for too long" in causes


@pytest.mark.parametrize("watched", [10.0], indirect=True)
def test_a_machine_that_slept_has_no_stalled_workers(watched: Watched) -> None:
    stopped = watched.until_stopped()
    watched.sleep(8 * 3600.0)
    assert watched.hold() is None
    assert process.is_alive(stopped)


def test_a_real_trainer_that_is_stopped_is_shown_and_goes_on_with_its_next_line(service: Service) -> None:
    service.settings = Settings(stall_limit_minutes=60)
    request = {"type": "finetune", "idempotency_key": "k", "base_model_id": "tiny", "dataset_id": "sums"}
    job_id = service.submit({**request, "hyperparams": {"steps": 100_000, "seq_len": 64}}).job.id
    # It stops itself, so that it is training then, and not evaluating or saving, on the slowest machine too.
    run = Watched(service, job_id, launch=worker.launching(worker.Fate(step=4, number=signal.SIGSTOP)))
    eventually(lambda: run.supervisor.tick() or service.job(job_id).step > 3, what="some steps")
    stopped = run.until_stopped()
    run.leap(400)
    assert run.hold() == (
        f"stalled: nothing heard for 6 min; last: training; its process is stopped (kill -CONT {stopped.pid})"
    )
    assert process.send(stopped, signal.SIGCONT, group=True)
    eventually(lambda: run.supervisor.tick() or run.hold() is None, what="the next line")
    assert service.job(job_id).state in ("running", "checkpointing")
    assert process.send(stopped, signal.SIGKILL, group=True)
    run.supervisor.close()
