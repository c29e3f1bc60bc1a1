"""A service on a fresh data folder with catalogue rows alone, and a clock that stands until it is set."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from store import Store, attempts, catalog, jobs
from store.attempts import Attempt
from tests.store.entries import base_model, dataset


@dataclass
class Clock:
    """The time of day, as the test says."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(tmp_path: Path, clock: Clock) -> Iterator[Service]:
    opened = Service(Home(tmp_path / "home"), config=Settings(usd_per_gpu_hour=2.0), clock=clock)
    with opened.store.write() as db:
        catalog.add_base_model(db, base_model())
        catalog.add_dataset(db, dataset())
    yield opened
    opened.close()


@pytest.fixture
def store(service: Service) -> Store:
    return service.store


def request_for(**fields: Any) -> dict[str, Any]:
    """Return a request for a small job under a fresh idempotency key."""
    base = {"type": "finetune", "idempotency_key": uuid.uuid4().hex, "base_model_id": "tiny", "dataset_id": "rows"}
    return {**base, **fields}


def start(service: Service, job_id: str, *, upto: str = "running", start_step: int = 0) -> Attempt:
    """Claim a job as the supervisor does and take it as far as the state `upto`."""
    job = service.job(job_id)
    fence = job.fence + 1
    directory = service.home.attempt(job_id, fence)
    directory.mkdir(parents=True)
    with service.store.write() as db:
        assert jobs.transition(db, job_id, "provisioning", fence=job.fence, new_fence=fence, now=1.0)
        attempts.begin(db, job_id, fence, device="cpu", directory=str(directory), start_step=start_step, now=1.0)
        for state in ("staging", "running", "uploading"):
            if jobs.get(db, job_id).state != upto:
                assert jobs.transition(db, job_id, state, fence=fence, now=1.0)
    return reread(service, job_id)


def reread(service: Service, job_id: str) -> Attempt:
    """Return a job's newest attempt as stored."""
    return attempts.of_job(service.store.read(), job_id)[-1]
