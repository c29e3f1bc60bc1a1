"""A supervisor may die at any point: workers go on, and the next one finds everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from engine import process
from engine.running import evidence
from engine.running.supervisor import AlreadyRunning, Supervisor
from engine.service import Service
from store import StoreBusy, attempts
from tests.conditions import eventually
from tests.crash import faults, light
from tests.supervised import Supervised


def test_a_worker_goes_on_whatever_becomes_of_its_supervisor_and_the_next_adopts_it(supervised: Supervised) -> None:
    # More steps than it can make while supervisors start: it is stopped when all is seen.
    job = supervised.submit(steps=100_000, save_steps=50)
    supervised.until_step(job.id, 10)
    worker = supervised.worker(job.id)
    supervised.send(signal.SIGHUP)  # the terminal that it was started from is gone
    for ending in (signal.SIGTERM, signal.SIGKILL):
        seen = supervised.job(job.id).step
        supervised.until_step(job.id, seen + 5)
        supervised.end(ending)
        stored = supervised.job(job.id).step
        journal = supervised.service.home.attempt(job.id, 1) / "journal.jsonl"
        size = journal.stat().st_size
        eventually(lambda file=journal, size=size: file.stat().st_size > size + 5000, what="the worker going on alone")
        assert supervised.job(job.id).step == stored
        supervised.start()
        supervised.until_step(job.id, stored + 1)
        assert supervised.worker(job.id) == worker
    supervised.service.cancel(job.id)
    done = supervised.until_finished(job.id)
    assert (done.state, done.retries, done.fence) == ("cancelled", 0, 1)
    assert done.last_checkpoint_step == done.step  # it heard the third supervisor, and saved
    steps = [point.step for point in supervised.service.points(job.id) if point.phase == "train"]
    assert steps == list(range(1, done.step + 1))


def test_worker_and_supervisor_killed_together_still_complete(supervised: Supervised) -> None:
    job = supervised.submit(steps=300)
    supervised.until_step(job.id, 25)
    worker = supervised.worker(job.id)
    assert process.send(worker, signal.SIGSTOP)  # so that it is not through before its supervisor is gone
    supervised.kill()
    assert process.send(worker, signal.SIGKILL)
    supervised.start()
    done = supervised.until_finished(job.id)
    assert (done.state, done.retries) == ("completed", 1)
    steps = [point.step for point in supervised.service.points(job.id) if point.phase == "train"]
    assert steps == list(range(1, 301))


def test_a_second_supervisor_is_refused_and_told_who_runs(supervised: Supervised) -> None:
    with pytest.raises(AlreadyRunning, match=r"pid \d+"):
        Supervisor(supervised.service)


def submit(service: Service, key: str = "k") -> str:
    """Queue a run of the tiny model."""
    request = {"type": "finetune", "idempotency_key": key, "base_model_id": "tiny", "dataset_id": "sums"}
    return service.submit({**request, "hyperparams": {"steps": 5, "seq_len": 64}}).job.id


def test_a_worker_whose_supervisor_died_before_its_gate_is_adopted_and_trains(service: Service) -> None:
    job_id = submit(service)

    def die_at_the_gate(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if getattr(call, "__name__", "") == "touch":
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)

    def first_round() -> None:
        supervisor = Supervisor(Service(service.home, config=service.settings))
        with mock.patch("engine.atomic.step", die_at_the_gate):
            supervisor.tick()

    assert faults.forked(first_round) == -signal.SIGKILL
    before = attempts.open_attempts(service.store.read())
    second = Supervisor(service)
    eventually(lambda: second.tick() or service.job(job_id).finished, within=120, what="the end")
    assert (service.job(job_id).state, service.job(job_id).retries) == ("completed", 0)
    history = attempts.of_job(service.store.read(), job_id)
    assert [attempt.pid for attempt in history] == [before[0].pid]
    # No child of this supervisor, so nobody could tell it how the process ended.
    assert (history[0].outcome, history[0].exit_code) == ("completed", None)
    second.close()


def test_a_worker_without_a_gate_leaves_and_touches_nothing(service: Service, tmp_path: Path) -> None:
    directory = tmp_path / "attempt"
    directory.mkdir()
    code = (
        "import engine.trainer.__main__ as m, pathlib, sys; m.GATE_SECONDS = 0.2; sys.exit(m.main(pathlib.Path('.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "did not open" in done.stderr
    assert list(directory.iterdir()) == []


@pytest.fixture
def light_one(tmp_path: Path) -> Iterator[Service]:
    """A service whose workers train nothing."""
    opened = light.open_service(tmp_path / "home", light.install(tmp_path / "bin"))
    yield opened
    opened.close()


def test_a_full_disk_holds_the_run_and_space_lets_it_start(light_one: Service) -> None:
    room = [0]
    job_id = light.submit(light_one)
    supervisor = Supervisor(light_one, free_bytes=lambda path: room[0])
    for _ in range(3):
        supervisor.tick()
    job = light_one.job(job_id)
    assert job.state == "queued"
    assert "disk_full" in (job.hold or "")
    assert [event.kind for event in light_one.events(job_id)].count("hold") == 1
    room[0] = 10**12
    eventually(lambda: supervisor.tick() or light_one.job(job_id).finished, what="the end")
    job = light_one.job(job_id)
    assert (job.state, job.retries, job.hold) == ("completed", 0, None)
    supervisor.close()


def test_a_model_that_is_gone_fails_the_run_with_the_remedy(service: Service) -> None:
    job_id = submit(service)
    with service.store.write() as db:
        db.conn.execute("UPDATE base_models SET path = '/nowhere/at/all'")
    supervisor = Supervisor(service)
    supervisor.tick()
    job = service.job(job_id)
    assert job.state == "failed"
    assert "gone from /nowhere/at/all" in (job.error or "")
    supervisor.close()


def test_one_device_takes_one_run_at_a_time_oldest_first(supervised: Supervised) -> None:
    first, second = supervised.submit(steps=100_000), supervised.submit(steps=5)
    supervised.until_step(first.id, 1)
    assert supervised.job(second.id).state == "queued"
    supervised.service.cancel(first.id)
    assert supervised.until_finished(second.id).state == "completed"
    assert supervised.job(first.id).state == "cancelled"
    ended = supervised.job(first.id).finished_at or 0
    assert ended <= (supervised.job(second.id).started_at or 0)
    workers = _identities(supervised, [first.id, second.id])
    eventually(lambda: not any(psutil.pid_exists(worker.pid) for worker in workers), what="no zombie")


def _identities(supervised: Supervised, job_ids: list[str]) -> list[process.Identity]:
    db = supervised.service.store.read()
    rows = [attempt for job_id in job_ids for attempt in attempts.of_job(db, job_id)]
    return [identity for row in rows if (identity := evidence.worker(row))]


def test_a_commit_that_meets_a_busy_store_is_made_in_the_next_round(
    light_one: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = light.submit(light_one)
    supervisor = Supervisor(light_one)
    with monkeypatch.context() as patch:
        patch.setattr("engine.running.starting.attempts.update", busy)
        with pytest.raises(StoreBusy):
            supervisor.tick()
    assert light_one.job(job_id).state == "provisioning"
    eventually(lambda: supervisor.tick() or light_one.job(job_id).finished, what="the end")
    assert (light_one.job(job_id).state, light_one.job(job_id).fence) == ("completed", 1)
    supervisor.close()


def busy(*arguments: Any, **options: Any) -> None:
    """Answer as a locked store does."""
    raise StoreBusy("busy")


def test_an_interpreter_that_is_not_there_fails_the_run_in_words_after_some_tries(service: Service) -> None:
    def launch(directory: Path, **options: Any) -> subprocess.Popen[bytes]:
        raise FileNotFoundError(2, "No such file or directory", "/no/python")

    job_id = submit(service)
    now = [1000.0]
    supervisor = Supervisor(service, launch=launch, clock=lambda: now[0])
    while not service.job(job_id).finished:
        supervisor.tick()
        now[0] += 10
    job = service.job(job_id)
    assert (job.state, job.retries) == ("failed", 0)
    assert "trainer_python" in (job.error or "")
    supervisor.close()
