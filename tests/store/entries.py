"""Rows that tests put into a store: jobs and catalogue entries with every field that the test leaves open."""

from __future__ import annotations

import uuid
from typing import Any

from store import attempts, catalog, jobs
from store.jobs import Job
from store.library import Database


def new_job(db: Database, **fields: Any) -> Job:
    """Insert a queued job."""
    job_id = fields.pop("id", None) or str(uuid.uuid4())
    values: dict[str, Any] = {
        "type": "finetune",
        "name": f"job-{job_id[:4]}",
        "idempotency_key": f"key-{job_id}",
        "payload_hash": "0" * 64,
        "hyperparams": {"steps": 10, "output_name": "out"},
        "base_model_id": None,
        "source_model_id": None,
        "dataset_id": None,
        "tags": [],
        "notes": "",
        "total_steps": 10,
        "now": 1000.0,
    }
    return jobs.insert(db, id=job_id, **{**values, **fields})


def claim(db: Database, job_id: str, *, directory: str = "/nowhere", now: float = 1.0, start_step: int = 0) -> int:
    """Claim a queued job with its attempt, as the supervisor does; return the new fence."""
    fence = jobs.get(db, job_id).fence
    assert jobs.transition(db, job_id, "provisioning", fence=fence, new_fence=fence + 1, now=now)
    attempts.begin(db, job_id, fence + 1, device="cpu", directory=directory, start_step=start_step, now=now)
    return fence + 1


def base_model(**fields: Any) -> catalog.BaseModel:
    """Return a base model that is in no store yet."""
    values: dict[str, Any] = {"id": str(uuid.uuid4()), "family": "llama", "name": "tiny", "version": 0, "params": 7}
    rest: dict[str, Any] = {"precision": "bf16", "path": "/nowhere", "source": "test", "created_at": 1.0}
    return catalog.BaseModel(**{**values, **rest, **fields})


def model(**fields: Any) -> catalog.Model:
    """Return a trained model that is in no store yet."""
    values: dict[str, Any] = {"id": str(uuid.uuid4()), "family": "llama", "name": "mine", "version": 0, "params": 7}
    rest: dict[str, Any] = {"precision": "bf16", "path": "/nowhere", "status": "ready", "created_at": 1.0}
    return catalog.Model(**{**values, **rest, "base_model_id": "b", "job_id": None, **fields})


def dataset(**fields: Any) -> catalog.Dataset:
    """Return a dataset that is in no store yet."""
    values: dict[str, Any] = {"id": str(uuid.uuid4()), "name": "rows", "version": 0, "format": "text", "rows": 3}
    rest: dict[str, Any] = {"shard_count": 1, "bytes": 9, "sha256": "0" * 64, "path": "/nowhere", "source": "test"}
    return catalog.Dataset(**{**values, **rest, "status": "ready", "created_at": 1.0, **fields})
