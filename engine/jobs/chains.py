"""Jobs that start after others: whom a request means, which model they will find, and whether they can start now.

The rule: what a job needs of the one before it is decided here, at the submit as far as it can be known and again when
that one is completed. Why a job waits stands in its hold, which `store.jobs` keeps.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine import catalog
from engine.errors import Conflict, EngineError, Fault, InvalidRequest, UnknownReference
from engine.jobs import branches
from engine.jobs.branches import Branch
from engine.paths import Home
from store import NotFound, Store, jobs, states
from store import catalog as entries
from store.catalog import BaseModel, Model
from store.jobs import Job
from store.library import Database

if TYPE_CHECKING:
    from engine.jobs.hyperparams import Hyperparams
    from engine.jobs.specs import JobRequest

AnyModel = BaseModel | Model
# What `admission` settles by the model where a request left it open.
BY_THE_MODEL = frozenset({"growth_ratio", "num_layers_to_contract"})


def output_id(job_id: str) -> str:
    """Return the id that the model of a job has, or will have: the same in every attempt."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"fusion-tui/output/{job_id}"))


def find_job(db: Database, reference: str) -> Job:
    """Return the job that an id, a unique prefix of one, or a name means. Raises NotFound."""
    found = jobs.find(db, reference) if reference else []
    exact = [job for job in found if reference in (job.id, job.name)]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise NotFound(f"No job is called '{reference}'. See: fusion-tui jobs")
    names = ", ".join(f"{job.id[:8]} ({job.name})" for job in exact or found)
    raise NotFound(f"'{reference}' fits several jobs: {names}. Give more of the id.")


@dataclass(frozen=True)
class Origin:
    """What a request starts from. `model` is None while the job `after` has still to make it."""

    model_id: str
    model_name: str
    model: AnyModel | None
    after: Job | None = None
    own: bool = False  # whether it counts as a source model: one that a job made, or that the request calls so
    branch: Branch | None = None  # the checkpoint to start from, of a job that started from `model`


def origin_of(db: Database, request: JobRequest) -> Origin:
    """Find the model and the predecessor that a request names.

    Raises UnknownReference for a model; as `branches.find` for a checkpoint; InvalidRequest for a predecessor that is
    not there, that is not going to be completed, or that is another one in `after` than behind the model's @.
    """
    field = "base_model_id" if request.base_model_id else "source_model_id"
    after = _predecessor(db, "after", request.after) if request.after else None
    if request.checkpoint_id:
        branch = branches.find(db, request.checkpoint_id)
        model = catalog.find_model(db, catalog.model_of(branch.job))
        return Origin(model.id, model.name, model, after, own=bool(branch.job.source_model_id), branch=branch)
    if request.predecessor is None:
        model = catalog.find_model(db, request.model_reference or "")
        return Origin(model.id, model.name, model, after, own=bool(request.source_model_id))
    before = _predecessor(db, field, request.predecessor)
    if after is not None and after.id != before.id:
        message = f"is {after.name}, but the model is that of {before.name}. Name one job, or leave after out"
        raise InvalidRequest([Fault(("after",), message)])
    name = catalog.makes(before)
    if before.state != states.COMPLETED:
        return Origin(output_id(before.id), name, None, before, own=True)
    try:
        model = catalog.find_model(db, before.output_model_id or "")
    except UnknownReference:
        message = f"the model of the job {before.name} was removed. Submit that run again, or name another model"
        raise InvalidRequest([Fault((field,), message)]) from None
    return Origin(model.id, model.name, model, before, own=True)


def need_origin(db: Database, origin: Origin) -> None:
    """Raise as `origin_of` does where what it found is gone, or its predecessor has failed since."""
    if origin.model:
        catalog.find_model(db, origin.model.id)
    if origin.branch:
        branches.find(db, origin.branch.checkpoint.id)
    if origin.after:
        _predecessor(db, "after", origin.after.id)


def with_model(db: Database, payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a request in which @JOB is the id of the model that JOB made; a checkpoint, of that which its job trained.

    Raises InvalidRequest where JOB has made none; as `branches.find` for a checkpoint.
    """
    from engine.jobs.specs import OUTPUT_OF

    checkpoint_id, models = payload.get(branches.FIELD), ("base_model_id", "source_model_id")
    if isinstance(checkpoint_id, str) and not any(payload.get(field) for field in models):
        rest = {field: value for field, value in payload.items() if field != branches.FIELD}
        return {**rest, "base_model_id": catalog.model_of(branches.find(db, checkpoint_id).job)}
    for field in models:
        reference = payload.get(field)
        if isinstance(reference, str) and reference.startswith(OUTPUT_OF):
            before = _predecessor(db, field, reference.removeprefix(OUTPUT_OF))
            if before.output_model_id is None:
                message = f"the job {before.name} has not made its model yet; what it needs is planned when it has"
                raise InvalidRequest([Fault((field,), message)])
            return {**payload, field: before.output_model_id}
    return payload


def _predecessor(db: Database, field: str, reference: str) -> Job:
    try:
        job = find_job(db, reference)
    except NotFound as error:
        raise InvalidRequest([Fault((field,), str(error), "unknown")]) from None
    if job.delete_requested:
        raise InvalidRequest([Fault((field,), f"the job {job.name} is about to be deleted. Name another one")])
    if job.state in (states.FAILED, states.CANCELLED):
        message = f"the job {job.name} is {job.state}. Retry it first: fusion-tui retry {job.id[:8]}"
        raise InvalidRequest([Fault((field,), message)])
    return job


def awaits_model(job: Job) -> bool:
    """Say whether a job takes the model that the job before it makes."""
    return job.after_id is not None and job.source_model_id == output_id(job.after_id)


def awaits_in_vain(db: Database, job: Job) -> bool:
    """Say whether the job before this one, or one for which that waits itself, has failed or was cancelled."""
    return jobs.stopped_before(db, job.after_id) is not None


def maker_of(db: Database, model_id: str) -> str | None:
    """Return the name of the job that will make this model, for which others wait; None where none will."""
    waiting = jobs.taking(db, model_id)
    if waiting is None or not awaits_model(waiting) or jobs.hold_after(db, waiting.after_id) is None:
        return None
    return jobs.name_of(db, waiting.after_id or "")


def need_predecessor(db: Database, job: Job) -> None:
    """Raise EngineError where what this job needs of the one before it is not coming any more.

    That one was deleted before it had made its model; or it is completed, and its model is gone. A job with a model of
    its own needs nothing: what it waits for is deleted only when it is completed (`need_unawaited`). Nor does one that
    was started once: it had all that then.
    """
    if job.after_id is None or job.fence or not awaits_model(job):
        return
    if any(model.id == output_id(job.after_id) for model in entries.models(db)):
        return
    name = jobs.name_of(db, job.after_id)
    if name is None:
        raise EngineError(
            f"The job that {job.name} was to start after was deleted before it was completed. Submit that one again, "
            "and this one after it."
        )
    if jobs.hold_after(db, job.after_id) is None:
        raise EngineError(
            f"The model of the job {name}, which {job.name} starts from, was removed. Submit that one again, and this "
            "one after it."
        )


def need_again(db: Database, home: Home, job: Job) -> None:
    """Raise Conflict where a job cannot be queued again: it is about to go itself, what it reads or starts from or the
    job before it is gone, or another one took the name of its model."""
    if job.delete_requested:
        raise Conflict(f"The job {job.name} is about to be deleted. Submit a new one.")
    branches.need_again(db, home, job)
    try:
        need_predecessor(db, job)
        catalog.need_free_name(db, catalog.makes(job), besides=(job.id, output_id(job.id)))
    except EngineError as error:
        raise Conflict(str(error)) from None
    catalog.need_entries(db, job, model=not (awaits_model(job) and jobs.hold_after(db, job.after_id)))


def need_unawaited(db: Database, job: Job) -> None:
    """Raise Conflict where queued jobs wait for the end of this one, which is not completed."""
    waiting = [] if job.state == states.COMPLETED else jobs.followers(db, job.id)
    if waiting:
        names = ", ".join(one.name for one in waiting)
        raise Conflict(
            f"The job {job.name} is what {names} wait{'s' * (len(waiting) == 1)} for. Cancel "
            f"{'that one' if len(waiting) == 1 else 'those'} first, or retry this one: fusion-tui retry {job.id[:8]}"
        )


def is_unresolved(job: Job) -> bool:
    """Say whether a job was submitted before its model was there, so that nobody has yet judged whether it can be."""
    return job.plan is None and job.fence == 0 and awaits_model(job)


def settings_of(job: Job) -> Hyperparams:
    """Return a job's settings as they are stored; what is to be resolved counts as not given."""
    from engine.jobs.hyperparams import HYPERPARAMS

    return HYPERPARAMS[job.type].model_validate(job.hyperparams)


def stored_unresolved(settings: Hyperparams) -> dict[str, Any]:
    """Return the settings of a job whose model is not there yet, without those that depend on it and were not given."""
    left_out = BY_THE_MODEL - settings.model_fields_set
    return {name: value for name, value in settings.model_dump().items() if name not in left_out}


def resolve(store: Store, job: Job) -> Job:
    """Return the job as it can start now: judged by the model of the job before it, once that is there.

    Raises EngineError for what cannot be: the predecessor is gone with no model left, or `admission` refuses.
    """
    need_predecessor(store.read(), job)
    if not is_unresolved(job):
        return job
    from engine.plans import admission

    db = store.read()
    model = catalog.find_model(db, job.source_model_id or "")
    admitted = admission.admit(db, job.type, settings_of(job), model)
    resolved = {**job.hyperparams, **admitted.hyperparams, "output_name": catalog.makes(job)}
    if resolved == job.hyperparams and admitted.plan is None:
        return job
    with store.write() as writer:
        jobs.resolve(writer, job, hyperparams=resolved, plan=admitted.plan)
    return replace(job, hyperparams=resolved, plan=admitted.plan)
