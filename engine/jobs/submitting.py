"""From a request to a queued job.

The rule: one transaction takes the job, its idempotency key and its first event, or none of them; what reads files
comes before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import catalog, resources
from engine.catalog import CONTRACT
from engine.errors import KeyReused
from engine.jobs import branches, chains
from engine.jobs.chains import Origin
from engine.paths import Home
from store import Store, jobs
from store.catalog import Dataset
from store.jobs import Job
from store.library import Database

if TYPE_CHECKING:
    from engine.jobs.specs import JobRequest

# Room that a job needs to write its first checkpoint and its logs; the worker checks again before each save.
ROOM_TO_START = 64 * 1024 * 1024


@dataclass(frozen=True)
class Submission:
    """The answer to a submit: the job, whether this very call made it, and what is to be said of its settings."""

    job: Job
    created: bool
    advice: str = ""


def replay(db: Database, key: str, digest: str) -> Submission | None:
    """Return the job that was submitted under `key`, if any. Raises KeyReused where that was another request."""
    known = jobs.by_idempotency_key(db, key)
    if known is None:
        return None
    if known.payload_hash != digest:
        raise KeyReused(
            f"The idempotency key '{key}' was used for another request (job {known.id}). Use a new key for a new job."
        )
    return Submission(known, created=False)


@dataclass(frozen=True)
class _Judged:
    """A request with what was read for it: where it starts from, its settings as they are stored, its memory plan."""

    origin: Origin
    hyperparams: dict[str, Any]
    plan: dict[str, Any] | None
    total_steps: int  # as far as can be known before the rows are read: the worker says it anew


def _judge(db: Database, request: JobRequest) -> _Judged:
    """Look whether a request can be a job. Raises InvalidRequest, UnknownReference.

    What depends on a model that another job has still to make is judged when it is there, by `chains.resolve`.
    """
    from engine.plans import admission, duration

    origin = chains.origin_of(db, request)
    datasets = _data_of(db, request)
    steps = duration.steps(request.hyperparams, datasets, Path(origin.model.path) if origin.model else None)
    if origin.model is None:
        return _Judged(origin, chains.stored_unresolved(request.hyperparams), None, steps)
    admitted = admission.admit(db, request.type, request.hyperparams, origin.model)
    return _Judged(origin, admitted.hyperparams, admitted.plan, steps)


def _data_of(db: Database, request: JobRequest) -> list[Dataset]:
    """Return the datasets that a job reads: to learn from, or to report on where it takes none to learn from.

    Raises UnknownReference, InvalidRequest.
    """
    from engine.jobs.hyperparams import ContractHyperparams

    settings = request.hyperparams
    if not isinstance(settings, ContractHyperparams):
        return list(catalog.to_learn_from(db, request.dataset_id or "", request.more_dataset_ids))
    if settings.eval_dataset_id is None:
        return []
    dataset = catalog.find_dataset(db, settings.eval_dataset_id)
    catalog.need_text_to_learn(dataset, ("hyperparams", "eval_dataset_id"))
    return [dataset]


def submit(
    store: Store,
    home: Home,
    payload: Mapping[str, Any],
    *,
    careful: bool,
    digest: str | None,
    now: float,
    new_id: Callable[[], str],
) -> Submission:
    """Queue a job; see `Service.submit`."""
    from engine.jobs import specs  # brings pydantic, which an app that only looks does not need
    from engine.plans import advice

    request = specs.parse(payload)
    digest = digest or request.payload_hash()
    if replayed := replay(store.read(), request.idempotency_key, digest):
        return replayed
    warning = advice.of_request(store.read(), branches.with_model(store.read(), request))
    if warning and warning.refused and careful:
        raise warning.refusal()
    resources.need_space(home.root, ROOM_TO_START, "a new run")
    judged = _judge(store.read(), request)
    job_id = new_id()
    with branches.held(judged.origin.branch, job_id) as keep:
        with store.write() as db:
            # Asked again under the lock: another may have been first, and entries may have been removed.
            if replayed := replay(db, request.idempotency_key, digest):
                return replayed
            job = _insert(db, request, judged, digest=digest, job_id=job_id, now=now)
            if warning:
                jobs.add_event(db, job.id, "advice", warning.payload, now=now)
        keep()
    return Submission(job, created=True, advice=str(warning or ""))


def _insert(db: Database, request: JobRequest, judged: _Judged, *, digest: str, job_id: str, now: float) -> Job:
    """Add the job of a request that was judged. Raises as `_judge` does, for what has changed since."""
    origin, datasets = judged.origin, [each.id for each in _data_of(db, request)]
    first = next(iter(datasets), None)
    chains.need_origin(db, origin)
    wanted = request.hyperparams.output_name
    if wanted:
        catalog.need_free_name(db, wanted)
    hyperparams = {**judged.hyperparams, "output_name": wanted or f"model-{job_id[:8]}"}
    if request.type == CONTRACT:
        hyperparams["eval_dataset_id"] = first
    return jobs.insert(
        db,
        id=job_id,
        type=request.type,
        name=request.name or f"{request.type}-{origin.model_name}-{job_id[:4]}",
        idempotency_key=request.idempotency_key,
        payload_hash=digest,
        hyperparams=hyperparams,
        base_model_id=None if origin.own else origin.model_id,
        source_model_id=origin.model_id if origin.own else None,
        dataset_id=first if request.type != CONTRACT else None,
        more_dataset_ids=datasets[1:],
        project_id=request.project_id,
        tags=request.tags,
        notes=request.notes,
        total_steps=judged.total_steps,
        plan=judged.plan,
        after_id=origin.after.id if origin.after else None,
        checkpoint_id=origin.branch.checkpoint.id if origin.branch else None,
        now=now,
    )


def validate(db: Database, payload: Mapping[str, Any]) -> None:
    """Raise what `submit` would raise for a payload that cannot be a job; change nothing."""
    from engine.jobs import specs

    request = specs.parse(payload)
    _judge(db, request)
    if request.hyperparams.output_name:
        catalog.need_free_name(db, request.hyperparams.output_name)
