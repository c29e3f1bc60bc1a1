"""Submitting a job that starts from a checkpoint: what it takes over, what is refused, and who keeps the checkpoint."""

from __future__ import annotations

import errno
import uuid
from pathlib import Path
from typing import Any

import pytest

from engine import atomic, manifest, pins
from engine.errors import Conflict, EngineError, InvalidRequest, UnknownReference
from engine.jobs import branches
from engine.journal import JournalWriter
from engine.order import JOURNAL
from engine.paths import ASSETS
from engine.running import starting
from engine.running.ingest import ingest
from engine.service import Checkpoint, Job, Service
from store import jobs, telemetry
from tests.crash import faults
from tests.engine.conftest import request_for, reread, start


@pytest.fixture(autouse=True)
def _files(service: Service) -> None:
    """Catalogue entries whose files are there, as a start asks for."""
    with service.store.write() as db:
        db.conn.execute("UPDATE base_models SET path = ? WHERE name = 'tiny'", [str(ASSETS)])
        db.conn.execute("UPDATE datasets SET path = ?", [str(ASSETS)])


def saved(
    service: Service, *, type: str = "finetune", state: str = "published", **fields: Any
) -> tuple[Job, Checkpoint]:
    """Return a cancelled job with a checkpoint of step 5."""
    job = service.submit(request_for(**fields)).job
    directory = service.home.attempt(job.id, 1) / "checkpoints" / "step-00000005"
    directory.mkdir(parents=True)
    row = {"epoch": 1.0, "loss": 2.0, "eval_loss": 2.5, "lr": 1e-4, "bytes": 9, "created_at": 1.0}
    checkpoint = Checkpoint(str(uuid.uuid4()), job.id, 5, path=str(directory), state=state, **row)
    service.cancel(job.id)
    with service.store.write() as db:
        telemetry.add_checkpoint(db, checkpoint)
        jobs.update(db, job.id, type=type)
    return job, checkpoint


def branch(service: Service, checkpoint_id: str, **fields: Any) -> Job:
    request = request_for(checkpoint_id=checkpoint_id, **fields)
    del request["base_model_id"]
    return service.submit(request).job


def made(service: Service, job: Job) -> Path:
    """Make what counts as a job's own model to start from."""
    folder = service.home.start_model(job.id)
    folder.mkdir(parents=True)
    manifest.seal(folder, {})
    return folder


def test_a_job_from_a_checkpoint_has_the_models_and_the_plan_of_the_job_that_saved_it(service: Service) -> None:
    first, checkpoint = saved(service)
    job = branch(service, checkpoint.id.upper(), dataset_id="rows")
    assert job.checkpoint_id == checkpoint.id
    assert (job.base_model_id, job.source_model_id) == (first.base_model_id, first.source_model_id)
    assert job.plan == first.plan
    assert job.name.startswith("finetune-tiny-")
    assert pins.is_pinned(Path(checkpoint.path))
    assert not pins.is_pinned_by_user(Path(checkpoint.path))
    request = request_for(checkpoint_id=checkpoint.id, type="finetune")
    del request["base_model_id"]
    service.validate(request)


def test_the_worker_is_told_of_the_checkpoint_and_where_its_own_model_lies(service: Service) -> None:
    first, checkpoint = saved(service, hyperparams={"lora_rank": 4})
    job = branch(service, checkpoint.id)
    order = starting.make_order(service, job, "cpu")
    assert order.model_path == str(service.home.start_model(job.id))
    assert order.start
    assert (order.start.job_id, order.start.step, order.start.directory) == (first.id, 5, checkpoint.path)
    assert order.start.model_path == str(ASSETS)
    assert order.start.hyperparams["lora_rank"] == 4
    # One that starts from a checkpoint of a job that started from one itself, builds on that one's model.
    _, second = saved(service, checkpoint_id=checkpoint.id, base_model_id=None)
    third = branch(service, second.id)
    told = starting.make_order(service, third, "cpu").start
    assert told
    assert told.model_path == str(service.home.start_model(second.job_id))


@pytest.mark.parametrize("state", ["removed", "quarantined"])
def test_a_checkpoint_that_is_gone_is_refused_by_its_name(service: Service, state: str) -> None:
    _, checkpoint = saved(service, state=state, name="before")
    with pytest.raises(InvalidRequest, match=f"checkpoint_id: the checkpoint of step 5 of the job before is {state}"):
        branch(service, checkpoint.id)


def test_what_is_no_checkpoint_to_start_from_is_refused(service: Service) -> None:
    with pytest.raises(UnknownReference, match="No checkpoint has the id"):
        branch(service, str(uuid.uuid4()))
    with pytest.raises(InvalidRequest, match="checkpoint_id: string should match pattern"):
        branch(service, "newest")
    _, grown = saved(service, type="train")
    with pytest.raises(InvalidRequest, match="only those of finetune jobs"):
        branch(service, grown.id)
    first, checkpoint = saved(service)
    with pytest.raises(InvalidRequest, match="a checkpoint or a model to start from, not both"):
        service.submit(request_for(checkpoint_id=checkpoint.id))
    atomic.remove_tree(Path(checkpoint.path))
    with pytest.raises(InvalidRequest, match="is gone from the disk"):
        branch(service, checkpoint.id)
    assert [job.id for job in service.jobs(status="queued")] == []
    assert first.checkpoint_id is None


def test_a_request_without_a_checkpoint_is_hashed_as_before(service: Service) -> None:
    from engine.jobs import specs

    plain = specs.parse({"type": "finetune", "idempotency_key": "k", "base_model_id": "m", "dataset_id": "d"})
    assert plain.payload_hash() == "4a730d7fd611180e9c0bd86835741a38afb2fcde760fb32a261086ef01c61b36"


def test_a_submit_that_fails_or_is_a_replay_leaves_no_mark(service: Service) -> None:
    _, checkpoint = saved(service)
    service.submit(request_for(hyperparams={"output_name": "mine"}))
    with pytest.raises(InvalidRequest, match="taken"):
        branch(service, checkpoint.id, hyperparams={"output_name": "mine"})
    assert not pins.is_pinned(Path(checkpoint.path))
    first = branch(service, checkpoint.id, idempotency_key="once")
    again = branch(service, checkpoint.id, idempotency_key="once")
    assert again.id == first.id
    assert [path.name for path in Path(checkpoint.path).iterdir()] == [f"needed-by-{first.id}"]


def test_the_job_that_saved_it_stays_until_the_model_is_made(service: Service) -> None:
    first, checkpoint = saved(service)
    job = branch(service, checkpoint.id, name="second")
    for removing in (service.delete, service.discard):
        with pytest.raises(Conflict, match=r"A checkpoint of the job .* is what second starts from"):
            removing(first.id)
    made(service, job)
    service.delete(first.id)
    order = starting.make_order(service, service.job(job.id), "cpu")
    assert order.start
    assert (order.start.checkpoint_id, order.start.directory) == (checkpoint.id, "")


def test_a_job_whose_checkpoint_went_is_not_started_or_retried_unless_its_model_is_made(service: Service) -> None:
    first, checkpoint = saved(service)
    job = branch(service, checkpoint.id, name="second")
    service.cancel(job.id)
    service.delete(first.id)  # nobody unfinished needs it
    with pytest.raises(Conflict, match="second cannot be run again: No checkpoint has the id"):
        service.retry(job.id)
    with pytest.raises(EngineError, match="second cannot start: No checkpoint has the id"):
        branches.start_of(service.store.read(), service.home, job)
    made(service, job)
    assert service.retry(job.id).state == "queued"


def test_a_pin_of_its_user_and_the_mark_of_a_job_do_not_touch_each_other(service: Service) -> None:
    first, checkpoint = saved(service)
    job = branch(service, checkpoint.id)
    service.pin_checkpoint(first.id, 5)
    service.pin_checkpoint(first.id, 5, pinned=False)
    assert pins.is_pinned(Path(checkpoint.path))
    service.pin_checkpoint(first.id, 5)
    service.discard(job.id)
    assert pins.is_pinned_by_user(Path(checkpoint.path))
    assert [path.name for path in Path(checkpoint.path).iterdir()] == ["pinned"]


def test_the_plan_of_a_request_with_a_checkpoint_is_that_of_its_model(service: Service) -> None:
    with service.store.write() as db:
        db.conn.execute("UPDATE base_models SET path = ?", [str(ASSETS / "starter-model")])
    _, checkpoint = saved(service)
    request = {"type": "finetune", "dataset_id": "rows"}
    planned = service.plan({**request, "checkpoint_id": checkpoint.id})
    assert planned.needed == service.plan({**request, "base_model_id": "tiny"}).needed
    with pytest.raises(UnknownReference):
        service.plan({**request, "checkpoint_id": str(uuid.uuid4())})


def test_lineage_names_the_checkpoint_and_goes_on_doing_so_when_its_job_is_deleted(service: Service) -> None:
    from store import catalog
    from tests.store.entries import model

    first, checkpoint = saved(service)
    job = branch(service, checkpoint.id)
    with service.store.write() as db:
        catalog.add_model(db, model(job_id=job.id, base_model_id=first.base_model_id))
    (found,) = service.lineages(service.models()).values()
    assert found.checkpoint
    assert (found.checkpoint.id, found.checkpoint.job_id, found.checkpoint.step) == (
        checkpoint.id,
        first.id,
        5,
    )
    assert [parent.name for parent in found.parents] == ["tiny"]
    made(service, job)
    service.delete(first.id)
    (found,) = service.lineages(service.models()).values()
    assert found.checkpoint
    assert (found.checkpoint.id, found.checkpoint.step) == (checkpoint.id, None)


def test_a_checkpoint_that_is_saved_again_elsewhere_is_kept_for_those_who_start_from_it(service: Service) -> None:
    first = service.submit(request_for()).job
    attempt = start(service, first.id)
    old, new = (service.home.attempt(first.id, number) / "step-00000005" for number in (1, 2))

    def told(folder: Path) -> None:
        folder.mkdir(parents=True)
        facts = {"path": str(folder), "step": 5, "bytes": 9, "epoch": 1.0, "loss": 2.0, "eval_loss": 2.5, "lr": 1e-4}
        writer = JournalWriter(Path(attempt.directory) / JOURNAL, attempt.fence)
        writer.append("checkpoint", facts)
        writer.close()

    told(old)
    ingest(service.store, reread(service, first.id))
    (checkpoint,) = service.checkpoints(first.id)
    waits, begun = branch(service, checkpoint.id), branch(service, checkpoint.id)
    with service.store.write() as db:
        db.conn.execute("UPDATE jobs SET state = 'running' WHERE id = ?", [begun.id])  # of its own model
    atomic.set_aside(old, ".damaged")
    told(new)
    with faults.at(1, faults.fail(errno.ENOSPC)), pytest.raises(OSError, match="No space left"):
        ingest(service.store, reread(service, first.id))
    assert service.checkpoints(first.id) == [checkpoint], "it is not told of before it is kept"
    ingest(service.store, reread(service, first.id))
    assert [path.name for path in new.iterdir()] == [f"needed-by-{waits.id}"]
    order = starting.make_order(service, waits, "cpu")
    assert order.start
    assert order.start.directory == str(new)
    # One that is gone before it is told of keeps no line out.
    third = new.parent / "third" / "step-00000005"
    told(third)
    third.rmdir()
    ingest(service.store, reread(service, first.id))
    assert service.checkpoints(first.id)[0].path == str(third)
