"""From a request to a queued job.

The rule: one transaction takes the job, its idempotency key and its first event, or none of them; what reads files
comes before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine import catalog, resources
from engine.errors import Conflict
from engine.paths import Home
from store import Store, jobs
from store.jobs import Job
from store.library import Database

# Room that a job needs to write its first checkpoint and its logs; the worker checks again before each save.
ROOM_TO_START = 64 * 1024 * 1024


@dataclass(frozen=True)
class Submission:
    """The answer to a submit: the job, whether this very call made it, and what is to be said of its settings."""

    job: Job
    created: bool
    advice: str = ""


def _replay(db: Database, key: str, digest: str) -> Submission | None:
    """Return the job that was submitted under `key`, if any. Raises Conflict where that was another request."""
    known = jobs.by_idempotency_key(db, key)
    if known is None:
        return None
    if known.payload_hash != digest:
        raise Conflict(
            f"The idempotency key '{key}' was used for another request (job {known.id}). Use a new key for a new job."
        )
    return Submission(known, created=False)


def submit(
    store: Store, home: Home, payload: Mapping[str, Any], *, careful: bool, now: float, new_id: Callable[[], str]
) -> Submission:
    """Queue a job; see `Service.submit`."""
    from engine import specs  # brings pydantic, which an app that only looks does not need
    from engine.plans import advice, planning

    request = specs.parse(payload)
    digest = request.payload_hash()
    if replayed := _replay(store.read(), request.idempotency_key, digest):
        return replayed
    warning = advice.of_request(store.read(), request)
    if warning and warning.refused and careful:
        raise warning.refusal()
    resources.need_space(home.root, ROOM_TO_START, "a new run")
    model = catalog.find_model(store.read(), request.model_reference or "")
    plan = planning.need_memory(store.read(), model, request.hyperparams)
    with store.write() as db:
        # Asked again under the lock: another may have been first, and entries may have been removed.
        if replayed := _replay(db, request.idempotency_key, digest):
            return replayed
        model = catalog.find_model(db, model.id)
        dataset = catalog.find_dataset(db, request.dataset_id or "")
        catalog.need_text_to_learn(dataset)
        job_id = new_id()
        hyperparams = request.hyperparams.model_dump()
        hyperparams["output_name"] = request.hyperparams.output_name or f"model-{job_id[:8]}"
        job = jobs.insert(
            db,
            id=job_id,
            type=request.type,
            name=request.name or f"{request.type}-{model.name}-{job_id[:4]}",
            idempotency_key=request.idempotency_key,
            payload_hash=digest,
            hyperparams=hyperparams,
            base_model_id=None if request.source_model_id else model.id,
            source_model_id=model.id if request.source_model_id else None,
            dataset_id=dataset.id,
            tags=request.tags,
            notes=request.notes,
            total_steps=request.hyperparams.total_steps,
            plan=plan,
            now=now,
        )
        if warning:
            jobs.add_event(db, job_id, "advice", warning.payload, now=now)
    return Submission(job, created=True, advice=str(warning or ""))


def validate(db: Database, payload: Mapping[str, Any]) -> None:
    """Raise what `submit` would raise for a payload that cannot be a job; change nothing."""
    from engine import specs
    from engine.plans import planning

    request = specs.parse(payload)
    planning.need_memory(db, catalog.find_model(db, request.model_reference or ""), request.hyperparams)
    catalog.need_text_to_learn(catalog.find_dataset(db, request.dataset_id or ""))
