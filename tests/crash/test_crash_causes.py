"""Each way in which a worker can end, and what follows: the table of `engine.running.recover`, with real deaths."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import process
from engine.running import deaths
from engine.running.deaths import OomWatch
from engine.running.supervisor import Supervisor
from engine.service import Job, Service
from store import attempts
from store.attempts import Attempt
from tests.conditions import eventually
from tests.crash import light

Open = Callable[..., Service]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open a data folder whose workers behave as told."""
    services: list[Service] = []

    def open_one(**behaviour: Any) -> Service:
        services.append(light.open_service(tmp_path / "home", light.install(tmp_path / "bin", **behaviour)))
        return services[-1]

    yield open_one
    for service in services:
        service.close()


def carry_out(service: Service, *, steps: int = 4, save_steps: int = 100, **options: Any) -> Job:
    """Run a job to its end, by a clock that leaps over every wait."""
    skew = [0.0]
    job_id = light.submit(service, steps=steps, save_steps=save_steps)
    supervisor = Supervisor(service, clock=lambda: time.time() + skew[0], **options)

    def done() -> Job | None:
        supervisor.tick()
        skew[0] += 100.0 if service.job(job_id).state == "queued" else 0.0
        return service.job(job_id) if service.job(job_id).finished else None

    job = eventually(done, what="the end")
    supervisor.close()
    return job


def losses_of(service: Service, job: Job) -> list[dict[str, Any]]:
    """Return what the job's history tells of each worker that was lost."""
    states = [event.payload for event in service.events(job.id) if event.kind == "state"]
    return [payload for payload in states if payload["to"] == "preempted"]


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("SIGSEGV", -11, "a segmentation fault (signal 11)"),
        ("SIGABRT", -6, "an abort (signal 6)"),
        ("SIGBUS", -7, "a bus error (signal 7)"),
        ("SIGILL", -4, "an illegal instruction (signal 4)"),
        ("exit 5", 5, "left with exit status 5 and no word of how it ended: RuntimeError: it broke"),
    ],
)
def test_dying_twice_at_one_step_of_its_own_doing_fails_the_run_at_once(
    opened: Open, how: str, code: int, words: str
) -> None:
    service = opened(at_step=2, do=how)
    job = carry_out(service)
    assert (job.state, job.retries) == ("failed", 1)
    assert "died twice at step 2 with no new checkpoint" in (job.error or "")
    assert words in (job.error or "")
    assert [(attempt.outcome, attempt.exit_code) for attempt in light.history(service, job.id)] == [
        ("lost", code),
        ("failed", code),
    ]
    assert [(loss["why"], loss["step"]) for loss in losses_of(service, job)] == [("lost", 2)]
    assert losses_of(service, job)[0]["cause"] == words.partition(":")[0]


def test_dying_once_of_its_own_doing_costs_a_retry(opened: Open) -> None:
    service = opened(at_step=2, do="SIGSEGV", times=1)
    job = carry_out(service)
    assert (job.state, job.retries) == ("completed", 1)
    assert light.steps_of(service, job.id) == [1, 2, 3, 4]


def test_a_checkpoint_between_two_deaths_at_one_step_gives_it_another_try(opened: Open) -> None:
    service = opened(at_step=2, do="SIGSEGV", times=2)
    job = carry_out(service, save_steps=1)
    # The first began at 0, the second at 1: another state of things, so no proof that the step cannot be done.
    assert (job.state, job.retries) == ("completed", 2)


def test_a_run_killed_from_outside_gets_five_tries_and_waits_longer_for_each(opened: Open) -> None:
    service = opened(at_step=2, do="SIGKILL")
    job = carry_out(service)
    assert (job.state, job.retries) == ("failed", 4)
    assert "died 5 times in a row with no new checkpoint, last at step 2: killed by signal 9" in (job.error or "")
    assert [attempt.exit_code for attempt in light.history(service, job.id)] == [-9] * 5
    # A user's retry has all its tries again.
    service.retry(job.id)
    assert service.job(job.id).state == "queued"


def test_a_worker_terminated_from_outside_saves_and_goes_on_from_there(opened: Open) -> None:
    service = opened(at_step=2, do="SIGTERM", times=1)
    job = carry_out(service)
    assert (job.state, job.retries) == ("completed", 1)
    assert [attempt.outcome for attempt in light.history(service, job.id)] == ["preempted", "completed"]
    assert job.last_checkpoint_step >= 2


def test_a_worker_that_the_system_killed_for_memory_is_told_so(opened: Open) -> None:
    service = opened(at_step=2, do="SIGKILL", times=1)

    def kills() -> int:
        """Count as the kernel does: one kill, from the moment of it."""
        ends = [attempt.ended_at or not process.identify(attempt.pid or 0) for attempt in history()]
        return int(bool(ends and ends[0]))

    def history() -> list[Attempt]:
        return [attempt for job in service.jobs() for attempt in light.history(service, job.id) if attempt.pid]

    job = carry_out(service, oom_count=kills)
    assert (job.state, job.retries) == ("completed", 1)
    assert losses_of(service, job)[0]["cause"] == "killed by the system for lack of memory"


def test_a_worker_that_found_its_gate_shut_costs_no_retry(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    service = opened(gate_s=0.1)
    with monkeypatch.context() as patch:
        patch.setattr("engine.running.starting.Starter.open_gate", lambda *_: None)
        supervisor = Supervisor(service)
        job_id = light.submit(service)
        supervisor.tick()
        first = attempts.open_attempts(service.store.read())[0]
        eventually(lambda: supervisor.tick() or service.job(job_id).fence > 1, what="another try")
        supervisor.close()
    ended = light.history(service, job_id)[0]
    assert (ended.pid, ended.outcome, ended.exit_code) == (first.pid, "unstarted", 3)
    assert service.job(job_id).retries == 0


def test_a_worker_that_broke_on_a_full_disk_waits_for_room_and_costs_no_retry(opened: Open) -> None:
    service = opened(at_step=2, do="exit 1", times=1)
    # Full from the moment that the worker is there; with it, the disk is as it was.
    job = carry_out(service, free_bytes=lambda _: 0 if attempts.open_attempts(service.store.read()) else 10**12)
    assert (job.state, job.retries) == ("completed", 0)
    history = light.history(service, job.id)
    assert [(attempt.outcome, attempt.exit_code) for attempt in history] == [("preempted", 1), ("completed", 0)]
    assert losses_of(service, job)[0]["why"] == "disk_full"


def test_a_kill_for_memory_counts_for_some_seconds_only() -> None:
    now, kills = [0.0], [7]
    watch = OomWatch(lambda: kills[0], lambda: now[0])
    assert not watch.rose()
    kills[0] = 8
    assert watch.rose()
    for now[0] in (9.0, 11.0, 15.0):
        watch.look()
        assert watch.rose()
    now[0] = 22.0
    watch.look()
    assert not watch.rose()


def test_the_kernels_count_of_kills_is_read_where_it_has_one(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 42\nother 1\n")
    assert deaths.oom_kills(tmp_path / "vmstat") == 42
    assert deaths.oom_kills(tmp_path / "none") == 0
