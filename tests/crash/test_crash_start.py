"""A supervisor killed at each call between claim and gate: no orphan, no job without an owner, no retry counted."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from engine import process
from engine.running.supervisor import Supervisor
from engine.service import Service
from store import attempts
from tests.conditions import eventually
from tests.crash import faults, light

READING = ("SELECT", "PRAGMA", "SAVEPOINT", "RELEASE")


def first_round(root: Path, executable: Path, number: int, action: faults.Action) -> Callable[[], None]:
    """Return a supervisor's first round, for a process of its own, that acts at call `number`."""

    def work() -> None:
        service = light.open_service(root, executable)
        supervisor = Supervisor(service)
        with faults.at(number, action, sql=True):
            supervisor.tick()

    return work


def finish(service: Service, job_id: str) -> None:
    """Let the next supervisor take the data folder over and finish its job."""
    supervisor = Supervisor(service)
    eventually(lambda: supervisor.tick() or service.job(job_id).finished, what="the end")
    supervisor.close()


def calls_that_write(service: Service) -> list[int]:
    """Return the numbers of a first round's calls that change something: to die before a read is to die after them."""
    finish(service, light.submit(service))  # what is made once, is made
    job_id = light.submit(service)
    numbers: list[int] = []
    count = itertools.count(1)

    def note(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        number = next(count)
        if not (arguments and str(arguments[0]).lstrip().upper().startswith(READING)):
            numbers.append(number)
        return call(*arguments, **options)

    supervisor = Supervisor(service)
    with mock.patch("engine.atomic.step", note), mock.patch("store.db.step", note):
        supervisor.tick()
    supervisor.close()
    finish(service, job_id)
    return [*numbers, next(count)]


@pytest.mark.parametrize("action", [faults.die, pytest.param(faults.die_after, marks=pytest.mark.slow)])
def test_killed_at_each_call_of_a_start_nothing_is_lost_left_or_counted(tmp_path: Path, action: faults.Action) -> None:
    # How long a worker waits for its gate is for the test to say: until all that can be adopted is.
    patient = tmp_path / "patient"
    patient.touch()
    executable = light.install(tmp_path / "bin", gate_s=0.5, patient=str(patient))
    service = light.open_service(tmp_path / "home", executable)
    numbers = calls_that_write(service)
    adopted = 0
    for number in numbers:
        job_id = light.submit(service)
        ended = faults.forked(first_round(tmp_path / "home", executable, number, action))
        assert ended == (0 if number == numbers[-1] else -signal.SIGKILL)
        before = attempts.open_attempts(service.store.read())
        finish(service, job_id)

        job, history = service.job(job_id), light.history(service, job_id)
        assert (job.state, job.retries) == ("completed", 0), number
        assert [attempt.outcome for attempt in history] == ["unstarted"] * (len(history) - 1) + ["completed"], number
        assert light.steps_of(service, job_id) == [1, 2, 3], number
        assert job.fence == len(history) <= 2, number
        if before and before[0].pid:
            # Its identity was committed, so it was adopted: the same process to the end.
            assert [attempt.pid for attempt in history] == [before[0].pid], number
            adopted += 1
    service.close()
    assert adopted > 3
    # A worker that nobody committed finds its gate shut, does nothing and leaves.
    patient.unlink()
    pids = light.spawned(executable)
    assert len(pids) > len(numbers)
    eventually(lambda: not any(process.identify(pid) for pid in pids), what="the end of every worker")
