"""A checkpoint that is pinned stays, in the store and on the disk, until its pin or its job goes."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from engine import manifest, pins
from engine.errors import Conflict, DiskFailed, NoSpace
from engine.paths import Home
from engine.service import Checkpoint, NotFound, Service
from engine.settings import Settings
from store import telemetry
from store.errors import StoreFull, StoreReadOnly
from tests.crash import faults


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    opened = Service(Home(tmp_path / "home"), config=Settings())
    yield opened
    opened.close()


@pytest.fixture
def job_id(service: Service) -> str:
    """A job with published checkpoints of steps 10 and 20, and one of step 5 that was removed."""
    request = {"type": "finetune", "idempotency_key": "k", "base_model_id": "starter", "dataset_id": "starter"}
    job = service.submit({**request, "hyperparams": {"steps": 30}}).job
    with service.store.write() as db:
        for step, state in ((5, "removed"), (10, "published"), (20, "published")):
            folder = service.home.attempt(job.id, 1) / "checkpoints" / f"step-{step:08d}"
            if state == "published":
                folder.mkdir(parents=True)
                (folder / "state.json").write_text("{}")
                manifest.seal(folder, {"step": step})
            row = Checkpoint(f"c{step}", job.id, step, 0.5, 2.0, None, 1e-4, str(folder), 10, state, 1.0)
            telemetry.add_checkpoint(db, row)
    return job.id


def pinned(service: Service, job_id: str) -> list[int]:
    """Return the steps that the store shows as pinned, having checked that the same are marked on the disk."""
    found = service.checkpoints(job_id)
    assert [c.pinned for c in found] == [pins.is_pinned(Path(c.path)) for c in found]
    return [c.step for c in found if c.pinned]


def test_a_pin_is_set_and_taken_away_as_often_as_asked_and_spoils_no_seal(service: Service, job_id: str) -> None:
    for _ in range(2):
        answer = service.pin_checkpoint(job_id, 10)
        assert (answer.step, answer.pinned) == (10, True)
        assert pinned(service, job_id) == [10]
        manifest.verify(Path(answer.path))
    for _ in range(2):
        assert not service.pin_checkpoint(job_id, 10, pinned=False).pinned
        assert pinned(service, job_id) == []


def test_a_checkpoint_that_is_not_there_cannot_be_pinned(service: Service, job_id: str) -> None:
    with pytest.raises(NotFound, match=r"no checkpoint of step 7\. See: fusion-tui checkpoints"):
        service.pin_checkpoint(job_id, 7)
    with pytest.raises(NotFound):
        service.pin_checkpoint("nobody", 10)
    with pytest.raises(Conflict, match=r"step 5 of the job .* is removed"):
        service.pin_checkpoint(job_id, 5)
    # Its worker removed it, and nobody has read that yet.
    shutil.rmtree(service.checkpoints(job_id)[1].path)
    with pytest.raises(Conflict, match="is gone from the disk"):
        service.pin_checkpoint(job_id, 10)
    assert pinned(service, job_id) == []


def test_a_checkpoint_that_is_saved_again_stays_pinned(service: Service, job_id: str) -> None:
    service.pin_checkpoint(job_id, 20)
    again = dataclasses.replace(service.checkpoints(job_id)[2], id="other", pinned=False, created_at=9.0)
    with service.store.write() as db:
        telemetry.add_checkpoint(db, again)
    assert pinned(service, job_id) == [20]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EIO, DiskFailed)])
def test_a_disk_that_refuses_a_pin_is_told_and_no_pin_is_shown_that_is_not_there(
    service: Service, job_id: str, number: int, kind: type[Exception]
) -> None:
    with faults.at(0, faults.die) as count:
        service.pin_checkpoint(job_id, 10)
    service.pin_checkpoint(job_id, 10, pinned=False)
    for at in range(1, count.calls + 1):
        with faults.at(at, faults.fail(number)), pytest.raises(kind, match=r"inning the checkpoint of step 10 failed"):
            service.pin_checkpoint(job_id, 10)
        assert pinned(service, job_id) == []
        service.pin_checkpoint(job_id, 10)
        assert pinned(service, job_id) == [10]
        service.pin_checkpoint(job_id, 10, pinned=False)


@pytest.mark.parametrize("before", [False, True], ids=["new", "pinned-before"])
def test_a_store_that_refuses_a_pin_leaves_the_disk_as_it_was(service: Service, job_id: str, before: bool) -> None:
    if before:
        service.pin_checkpoint(job_id, 10)
    with faults.at(0, faults.die, files=False, sql=True) as count:
        service.pin_checkpoint(job_id, 10)
    if not before:
        service.pin_checkpoint(job_id, 10, pinned=False)
    refused = 0
    for at in range(1, count.calls + 1):
        with faults.at(at, faults.fail(errno.ENOSPC), files=False, sql=True), suppress(StoreFull):
            service.pin_checkpoint(job_id, 10)
            continue
        refused += 1
        assert pinned(service, job_id) == [10] * before
    assert refused == count.calls > 2


def test_a_store_that_is_only_looked_at_pins_nothing(service: Service, job_id: str) -> None:
    service.pin_checkpoint(job_id, 20)
    looking = Service(service.home, config=Settings(), read_only=True)
    with closing(looking):
        for step, wanted in ((10, True), (20, False)):
            with pytest.raises(StoreReadOnly, match="opened read-only"):
                looking.pin_checkpoint(job_id, step, pinned=wanted)
    assert pinned(service, job_id) == [20]


def test_a_job_that_is_deleted_takes_its_pinned_checkpoints_with_it(service: Service, job_id: str) -> None:
    service.pin_checkpoint(job_id, 10)
    service.cancel(job_id)
    service.delete(job_id)
    assert not service.home.run(job_id).exists()
