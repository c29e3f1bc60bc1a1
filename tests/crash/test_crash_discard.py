"""A job that is to go, goes with all that it made, whoever dies on the way; and nobody loses what he needs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import process
from engine.errors import Conflict, InvalidRequest
from engine.jobs import chains
from engine.running import evidence
from engine.running.supervisor import Supervisor
from engine.service import NotFound, Service
from store import asked, attempts
from tests.conditions import eventually
from tests.crash import faults, light

CONFIG = {"model_type": "llama"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    executable = light.install(tmp_path / "bin", step_s=0.02, config=CONFIG)
    opened = light.open_service(tmp_path / "home", executable)
    yield opened
    for attempt in attempts.open_attempts(opened.store.read()):
        if identity := evidence.worker(attempt):
            process.send(identity, signal.SIGKILL)
    opened.close()


@pytest.fixture
def supervisor(service: Service) -> Iterator[Supervisor]:
    working = Supervisor(service)
    yield working
    working.close()


def until(supervisor: Supervisor, condition: Any, what: str) -> None:
    eventually(lambda: supervisor.tick() or condition(), what=what)


def is_gone(service: Service, job_id: str) -> bool:
    """Say whether nothing is left of a job: no row, no file, no model."""
    listed = [job.id for job in service.jobs()]
    files = [service.home.run(job_id), service.home.model(chains.output_id(job_id))]
    models = [model.id for model in service.models()]
    return not (job_id in listed or any(file.exists() for file in files) or chains.output_id(job_id) in models)


def completed(service: Service, supervisor: Supervisor, **fields: Any) -> str:
    job_id = light.submit(service, save_steps=1, **fields)
    until(supervisor, lambda: service.job(job_id).finished, "the end")
    assert service.job(job_id).state == "completed"
    return job_id


def test_a_running_job_is_stopped_and_gone_when_its_worker_is(service: Service, supervisor: Supervisor) -> None:
    job_id = light.submit(service, steps=100_000, save_steps=5)
    until(supervisor, lambda: service.job(job_id).step >= 3, "some steps")
    told = service.discard(job_id)
    assert told
    assert (told.stop_requested, told.delete_requested, told.finished) == (True, True, False)
    assert told.activity == "stopping; will be deleted"
    assert service.discard(job_id) == told, "asked for again, it changes nothing"
    worker = evidence.worker(light.history(service, job_id)[-1])
    assert worker
    assert process.is_alive(worker)
    assert service.home.run(job_id).exists(), "what a worker writes to stays as long as it lives"
    until(supervisor, lambda: is_gone(service, job_id), "the removal")
    assert not process.is_alive(worker)
    with pytest.raises(NotFound):
        service.job(job_id)


def test_it_survives_the_supervisor_and_a_worker_that_ends_otherwise(service: Service) -> None:
    first = Supervisor(service)
    job_id = light.submit(service, steps=100_000, save_steps=5)
    until(first, lambda: service.job(job_id).step >= 3, "some steps")
    worker = evidence.worker(light.history(service, job_id)[-1])
    assert worker
    assert process.send(worker, signal.SIGSTOP)
    service.discard(job_id)
    first.close()
    assert process.send(worker, signal.SIGKILL)
    second = Supervisor(service)
    until(second, lambda: is_gone(service, job_id), "the removal")
    second.close()


def test_a_finished_job_goes_with_its_model_and_needs_no_supervisor(service: Service, supervisor: Supervisor) -> None:
    job_id, other = completed(service, supervisor), completed(service, supervisor)
    assert service.discard(job_id) is None
    assert is_gone(service, job_id)
    assert [job.id for job in service.jobs()] == [other]
    assert [model.id for model in service.models()] == [chains.output_id(other)]


def test_a_queued_job_is_cancelled_first(service: Service) -> None:
    job_id = light.submit(service)
    assert service.discard(job_id) is None
    assert is_gone(service, job_id)


def test_a_job_that_others_need_is_left_as_it_is_and_they_are_named(service: Service, supervisor: Supervisor) -> None:
    job_id = completed(service, supervisor)
    request = {"type": "finetune", "dataset_id": "rows", "hyperparams": {"steps": 3}}
    model_id = chains.output_id(job_id)
    reader = service.submit({**request, "idempotency_key": "a", "base_model_id": model_id, "name": "reader"}).job
    with pytest.raises(Conflict, match="in use by reader"):
        service.discard(job_id)
    assert not service.job(job_id).delete_requested
    assert [model.id for model in service.models()] == [model_id]

    waits = service.submit({**request, "idempotency_key": "b", "base_model_id": f"@{reader.id}", "name": "waits"}).job
    with pytest.raises(Conflict, match="what waits waits for"):
        service.discard(reader.id)
    assert service.job(reader.id).state == "queued"
    for one in (waits.id, reader.id, job_id):
        assert service.discard(one) is None
    assert service.jobs() == []
    assert service.models() == []


def test_who_comes_to_need_a_job_while_it_stops_keeps_it(service: Service, supervisor: Supervisor) -> None:
    job_id = completed(service, supervisor)
    with service.store.write() as db:
        asked.to_go(db, job_id, now=5.0)  # as while it was stopping; and then somebody named its model
    request = {"type": "finetune", "dataset_id": "rows", "idempotency_key": "late", "name": "late"}
    service.submit({**request, "base_model_id": chains.output_id(job_id), "after": None})
    supervisor._removals_looked = float("-inf")
    supervisor._remove()
    job = service.job(job_id)
    assert (job.state, job.delete_requested) == ("completed", False)
    (why,) = [event.payload["why"] for event in service.events(job_id) if event.kind == "delete_refused"]
    assert "in use by late" in why


def test_a_job_that_is_about_to_go_is_not_retried_waited_for_or_saved(service: Service, supervisor: Supervisor) -> None:
    job_id = light.submit(service, steps=100_000)
    until(supervisor, lambda: service.job(job_id).step >= 1, "a step")
    service.discard(job_id)
    with pytest.raises(Conflict, match="is stopping"):
        service.save_now(job_id)
    request = {"type": "finetune", "dataset_id": "rows", "idempotency_key": "late"}
    with pytest.raises(InvalidRequest, match="is about to be deleted"):
        service.submit({**request, "base_model_id": f"@{job_id}"})
    with service.store.write() as db:
        db.conn.execute("UPDATE jobs SET state = 'cancelled' WHERE id = ?", [job_id])
    with pytest.raises(Conflict, match="about to be deleted"):
        service.retry(job_id)


def test_a_removal_that_was_cut_short_anywhere_is_finished_by_the_next_supervisor(
    service: Service, supervisor: Supervisor
) -> None:
    job_id = completed(service, supervisor)
    with faults.at(0, faults.die, sql=True) as count:
        service.discard(job_id)
    assert is_gone(service, job_id)
    for number in range(2, count.calls + 1, max(1, count.calls // 3)):
        job_id = completed(service, supervisor)

        def dying(at: int = number, job_id: str = job_id) -> None:
            fresh = Service(service.home, config=service.settings)
            with faults.at(at, faults.die, sql=True):
                fresh.discard(job_id)

        faults.forked(dying)
        if not service.store.read().execute("SELECT 1 FROM jobs WHERE delete_requested").fetchone():
            # It died before it was asked for, or when all was done.
            assert is_gone(service, job_id) or service.job(job_id).state == "completed"
            continue
        assert service.job(job_id).activity == "stopping; will be deleted"
        supervisor._removals_looked = float("-inf")
        until(supervisor, lambda job_id=job_id: is_gone(service, job_id), "the rest of the removal")
