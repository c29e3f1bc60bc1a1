"""A run from a checkpoint of another, by real workers under a real supervisor, the first of which is killed at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import pins
from engine.running.supervisor import Supervisor
from engine.service import Job, Service
from tests import worker
from tests.conditions import eventually

SETTINGS = {"steps": 6, "seq_len": 96, "batch_size": 2, "lr": 2e-2, "lora_rank": 4, "eval_steps": 2, "save_steps": 2}


def launch(directory: Path, **_: object) -> worker.Forked:
    """Start a worker; one that begins to make a model of a checkpoint is killed there, the first time."""
    return worker.Forked(
        worker._fork(directory, worker.Fate("making a model") if directory.name == "attempt-1" else None)
    )


@pytest.fixture(autouse=True)
def _supervised(service: Service) -> Iterator[None]:
    supervisor, stop = Supervisor(service, launch=launch), threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join()
    supervisor.close()


def completed(service: Service, **fields: Any) -> Job:
    request = {"type": "finetune", "dataset_id": "sums", "hyperparams": SETTINGS, **fields}
    job_id = service.submit(request).job.id
    eventually(lambda: service.job(job_id).finished, within=120, what="the end")
    job = service.job(job_id)
    assert job.state == "completed", job.error
    return job


@pytest.mark.slow
def test_a_run_from_a_checkpoint_begins_where_that_stood_though_its_first_worker_is_killed(service: Service) -> None:
    first = completed(service, idempotency_key="first", base_model_id="tiny")
    checkpoint = next(one for one in service.checkpoints(first.id) if one.step == 4)
    second = completed(service, idempotency_key="second", checkpoint_id=checkpoint.id)
    assert (second.retries, second.fence) == (1, 2)
    begun = next(point for point in service.points(second.id, phase="eval") if point.step == 0)
    assert begun.loss == pytest.approx(checkpoint.eval_loss, abs=2e-3)
    untrained = next(point for point in service.points(first.id, phase="eval") if point.step == 0)
    assert untrained.loss
    assert begun.loss
    assert untrained.loss - begun.loss > 0.05
    assert not pins.is_pinned(Path(checkpoint.path))
    model = service.model(second.output_model_id or "")
    assert model.path
    assert service.lineages(service.models())[model.id].checkpoint
    # The first run is needed no more, and its model and all else of it may go.
    assert service.discard(first.id) is None
    assert service.discard(second.id) is None
    assert service.models() == []
    assert not service.home.start_model(second.id).exists()
