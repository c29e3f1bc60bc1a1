"""What a removal or a submit leaves that died half-way is cleared away, and nothing else is."""

from __future__ import annotations

import errno
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.jobs import chains, removal
from engine.running.supervisor import Supervisor
from engine.service import Job, NotFound, Service
from store import asked, catalog, telemetry
from tests.crash import faults, light
from tests.store.entries import model


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    opened = light.open_service(tmp_path / "home", Path(sys.executable))
    yield opened
    opened.close()


@pytest.fixture
def supervise(service: Service) -> Iterator[Callable[..., Supervisor]]:
    """Start a supervisor that has no device, in place of the one before; it looks around once."""
    working: list[Supervisor] = []

    def begin(*, after: float = 0.0) -> Supervisor:
        for before in working:
            before.close()
        working[:] = [Supervisor(service, devices=list, clock=lambda: time.time() + after)]
        working[0].tick()
        return working[0]

    yield begin
    for last in working:
        last.close()


def ended(service: Service) -> Job:
    """Return a job that was cancelled, with a model, a run folder and a model begun by a worker that was killed."""
    job_id = light.submit(service)
    output = chains.output_id(job_id)
    for folder in (service.home.run(job_id), service.home.model(output), stage_of(service, job_id)):
        folder.mkdir()
        (folder / "file").touch()
    with service.store.write() as db:
        catalog.add_model(db, model(id=output, name=f"of-{job_id[:8]}", job_id=job_id))
    return service.cancel(job_id)


def stage_of(service: Service, job_id: str) -> Path:
    return service.home.root / "models" / f".{chains.output_id(job_id)}.stage-1"


def left_of(service: Service, job_id: str) -> set[str]:
    """Name what is there of a job."""
    output = chains.output_id(job_id)
    parts = {"run": service.home.run(job_id), "model": service.home.model(output), "stage": stage_of(service, job_id)}
    left = {name for name, path in parts.items() if path.exists()}
    left |= {"entry"} & {"entry" for one in service.models() if one.id == output}
    return left | {"row" for job in service.jobs() if job.id == job_id}


def test_a_deletion_that_was_cut_short_anywhere_is_finished_by_the_next_supervisor(
    service: Service, supervise: Callable[..., Supervisor]
) -> None:
    job_id = ended(service).id
    with faults.at(0, faults.die) as count:
        service.delete(job_id)
    assert left_of(service, job_id) == {"model", "entry"}
    assert count.calls >= 4
    for number, action in [(1, faults.die), (count.calls // 2, faults.die), (count.calls, faults.die_after)]:
        job_id = ended(service).id

        def dying(job_id: str = job_id, number: int = number, action: faults.Action = action) -> None:
            fresh = Service(service.home, config=service.settings)
            with faults.at(number, action):
                fresh.delete(job_id)

        assert faults.forked(dying) < 0
        assert "row" in left_of(service, job_id), "it says what is still to be done"
        supervise()
        assert left_of(service, job_id) == {"model", "entry"}


def test_what_is_to_go_with_its_model_goes_so_whatever_else_is_asked(service: Service) -> None:
    first, second = ended(service).id, ended(service).id
    with service.store.write() as db:
        asked.to_go(db, first, now=1.0, keep_model=True)
        asked.to_go(db, second, now=1.0)
    assert asked.keeps_model(service.store.read(), first)
    assert service.discard(first) is None
    service.delete(second)
    assert left_of(service, first) == left_of(service, second) == set()


def test_a_removal_that_fails_keeps_no_other_from_being_done(
    service: Service, supervise: Callable[..., Supervisor]
) -> None:
    supervisor = supervise()
    first, second = ended(service).id, ended(service).id
    with service.store.write() as db:
        for job_id in (first, second):
            asked.to_go(db, job_id, now=1.0)
    supervisor._removals_looked = float("-inf")
    with faults.at(1, faults.fail(errno.EIO)), pytest.raises(OSError, match=os.strerror(errno.EIO)):
        supervisor._remove()
    assert "row" in left_of(service, first)
    assert left_of(service, second) == set()
    supervise()
    assert left_of(service, first) == set()


def test_a_removal_in_which_another_process_was_quicker_is_done(service: Service) -> None:
    job_id = ended(service).id
    service.delete(job_id)
    assert removal.carry_out(service.store, service.home, job_id, now=1.0)
    with pytest.raises(NotFound):
        service.delete(job_id)


def test_the_mark_of_a_submit_that_died_is_taken_off_when_it_is_old(
    service: Service, supervise: Callable[..., Supervisor]
) -> None:
    first = ended(service)
    folder = service.home.attempt(first.id, 1) / "checkpoints" / "step-00000005"
    folder.mkdir(parents=True)
    row = {"epoch": 1.0, "loss": 2.0, "eval_loss": 2.5, "lr": 1e-4, "bytes": 9, "created_at": 1.0}
    saved = telemetry.Checkpoint(str(uuid.uuid4()), first.id, 5, path=str(folder), state="published", **row)
    with service.store.write() as db:
        telemetry.add_checkpoint(db, saved)

    def branch(on: Service) -> str:
        request = {"type": "finetune", "dataset_id": "rows", "hyperparams": {"steps": 3}, "checkpoint_id": saved.id}
        return on.submit({**request, "idempotency_key": uuid.uuid4().hex}).job.id

    with faults.at(0, faults.die) as count:
        job_id = branch(service)
    own = f"needed-by-{job_id}"

    def dying() -> None:
        fresh = Service(service.home, config=service.settings)
        with faults.at(count.calls, faults.die_after):  # the mark is made, the job is not
            branch(fresh)

    assert faults.forked(dying) < 0
    assert [job.id for job in service.jobs()] == [job_id, first.id]
    marks = {path.name for path in folder.iterdir()}
    assert len(marks) == 2
    supervise()
    assert {path.name for path in folder.iterdir()} == marks, "its submit may be on its way"
    supervise(after=3600.0)
    assert {path.name for path in folder.iterdir()} == {own}
