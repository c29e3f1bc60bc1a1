"""A checkpoint that a user asks for is made once: by the worker that runs, or by the one after it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine import process
from engine.errors import Conflict
from engine.process import Identity
from engine.running import evidence
from engine.running.supervisor import Supervisor
from engine.service import Service
from store import attempts
from tests.conditions import eventually
from tests.crash import light

FAR = 100_000  # a step that nobody reaches


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Open the same data folder, with workers of this behaviour."""
    services: list[Service] = []

    def opening(**behaviour: Any) -> Service:
        executable = light.install(tmp_path / "bin", **{"step_s": 0.01, **behaviour})
        services.append(light.open_service(tmp_path / "home", executable))
        return services[-1]

    yield opening
    for attempt in attempts.open_attempts(services[0].store.read()):
        if identity := evidence.worker(attempt):
            process.send(identity, signal.SIGKILL)
    for service in services:
        service.close()


@contextmanager
def supervising(service: Service) -> Iterator[Supervisor]:
    """A supervisor at work in a thread."""
    supervisor, stop = Supervisor(service), threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    try:
        yield supervisor
    finally:
        stop.set()
        thread.join()
        supervisor.close()


def worker(service: Service, job_id: str) -> Identity:
    identity = evidence.worker(light.history(service, job_id)[-1])
    assert identity
    return identity


def saved(service: Service, job_id: str) -> list[int]:
    return [checkpoint.step for checkpoint in service.checkpoints(job_id)]


def running(service: Service, *, at: int = 3) -> str:
    """Submit a run that saves nothing by itself, and wait until it has made some steps."""
    job_id = light.submit(service, steps=FAR, save_steps=FAR)
    eventually(lambda: service.job(job_id).step >= at, what="some steps")
    return job_id


def test_a_running_job_saves_once_for_each_request_and_goes_on(opened: Callable[..., Service]) -> None:
    service = opened()
    with supervising(service):
        job_id = running(service)
        for number in (1, 2):
            step = service.job(job_id).step
            assert service.save_now(job_id).save_requested
            eventually(lambda: not service.job(job_id).save_requested, what="the checkpoint")
            assert len(saved(service, job_id)) == number
            assert saved(service, job_id)[-1] >= step
        after = service.job(job_id).step
        eventually(lambda: service.job(job_id).step > after + 5, what="going on")
        assert len(saved(service, job_id)) == 2
        kinds = [event.kind for event in service.events(job_id)]
        assert kinds.count("save_requested") == 2
        assert (service.job(job_id).fence, service.job(job_id).retries) == (1, 0)


@pytest.mark.slow
def test_requests_in_a_burst_are_all_heard_however_they_meet_the_saves(opened: Callable[..., Service]) -> None:
    service = opened()
    with supervising(service):
        job_id = running(service)
        for _ in range(30):
            service.save_now(job_id)
        eventually(lambda: not service.job(job_id).save_requested, what="the last checkpoint")
        made = service.checkpoints(job_id)
        last = max(event.ts for event in service.events(job_id) if event.kind == "save_requested")
        assert made[-1].created_at >= last
        assert len(made) <= 30


def test_a_request_that_its_worker_did_not_live_to_see_is_done_by_the_next_one(
    opened: Callable[..., Service],
) -> None:
    service = opened()
    with supervising(service):
        job_id = running(service)
        first = worker(service, job_id)
        assert process.send(first, signal.SIGSTOP)
        service.save_now(job_id)
        assert process.send(first, signal.SIGKILL)
        eventually(lambda: saved(service, job_id), what="the checkpoint of the next worker")
        eventually(lambda: not service.job(job_id).save_requested, what="the request's end")
        assert service.job(job_id).fence == 2
        assert len(saved(service, job_id)) == 1


def test_a_request_is_done_once_though_two_supervisors_told_the_worker(opened: Callable[..., Service]) -> None:
    service = opened()
    with supervising(service) as first:
        job_id = running(service)
        who = worker(service, job_id)
        assert process.send(who, signal.SIGSTOP)
        service.save_now(job_id)
        eventually(lambda: first._asked, what="the signal")
    with supervising(service) as second:
        eventually(lambda: second._asked, what="the second signal")
        assert process.send(who, signal.SIGCONT)
        eventually(lambda: not service.job(job_id).save_requested, what="the checkpoint")
        step = service.job(job_id).step
        eventually(lambda: service.job(job_id).step > step + 5, what="going on")
        assert len(saved(service, job_id)) == 1
        assert worker(service, job_id) == who


def test_a_worker_that_does_not_listen_is_not_ended_by_a_request(opened: Callable[..., Service]) -> None:
    service = opened(deaf=True)
    with supervising(service):
        job_id = running(service)
        service.save_now(job_id)
        step = service.job(job_id).step
        eventually(lambda: service.job(job_id).step > step + 5, what="going on")
        assert service.job(job_id).save_requested
        assert service.job(job_id).fence == 1
        service.cancel(job_id)  # which saves, and so has what was asked for
        eventually(lambda: service.job(job_id).finished, what="the end")
        assert not service.job(job_id).save_requested


def test_only_a_job_that_runs_can_be_asked(opened: Callable[..., Service]) -> None:
    service = opened()
    job_id = light.submit(service)
    with pytest.raises(Conflict, match="is queued; only one that is running can save now"):
        service.save_now(job_id)
    with supervising(service):
        eventually(lambda: service.job(job_id).finished, what="the end")
    with pytest.raises(Conflict, match="is completed"):
        service.save_now(job_id)
    assert "save_requested" not in [event.kind for event in service.events(job_id)]
