"""What the tests of dialect B share: a client with a key of its own, so that none meets another's rate limit."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from engine.service import Service
from store import jobs, keys
from tests.api.conftest import BASE, DATA

UNKNOWN = str(uuid.UUID(int=99))
RECORD = {
    *("id", "model_name", "base_model", "training_type", "training_algorithm", "status", "normalized_status"),
    *("is_terminal_status", "progress_percent", "current_epoch", "error_message", "metrics", "artifact_ready"),
    *("is_deployable", "deployability_reason", "datasets", "nr_epochs", "learning_rate"),
    *("created_at", "started_at", "completed_at"),
}
OURS = {"type", "project_id", "output_model_id"}


@contextmanager
def client(service: Service, url: str) -> Iterator[httpx.Client]:
    """Give a client of /felix with every scope."""
    with httpx.Client(base_url=f"{url}/felix", headers=new_key(service), trust_env=False, timeout=60) as made:
        yield made


def new_key(service: Service) -> dict[str, str]:
    """Make a key with every scope; return the header that carries it."""
    secret = f"fus_{uuid.uuid4()}"
    with service.store.write() as db:
        keys.add(db, id=str(uuid.uuid4()), name="felix", secret=secret, scopes=keys.SCOPES, now=5.0)
    return {"X-API-Key": secret}


def request(**fields: Any) -> dict[str, Any]:
    """Return the least that a training job can be asked for with, and what is given."""
    return {"base_model": BASE.id, "datasets": [{"name": DATA.name}], **fields}


def submit(felix: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Queue a job and return its record."""
    answer = felix.post("/training-jobs", json=request(**fields))
    assert answer.status_code == 200, answer.text
    record: dict[str, Any] = answer.json()
    return record


def move(service: Service, job_id: str, *path: str, **columns: Any) -> None:
    """Take a job through these states as the supervisor does."""
    with service.store.write() as db:
        for state in path:
            assert jobs.transition(db, job_id, state, fence=0, now=100.0, **(columns if state == path[-1] else {}))
