"""Dialect A's routes about jobs.

The rule: a route translates, calls the service, translates back; what may be done to a job is decided there.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from engine.jobs.editing import JobEdit
from engine.jobs.specs import REQUESTS
from fusion_tui.api import body, errors, threads
from fusion_tui.api.access import LARGEST, READ, TRAIN, Engine, Id
from fusion_tui.api.fusion import answers
from fusion_tui.api.fusion.plan import MemoryPlan
from fusion_tui.api.fusion.writing import listed, written
from store.errors import NotFound

router = APIRouter(tags=["jobs"], responses=errors.documented(401, 403, 421, 422, 503))

AT_ONCE = 200  # jobs: to list more, or to look that far, would keep other requests waiting


@router.post(
    "/jobs",
    status_code=201,
    dependencies=TRAIN,
    response_model=answers.Job,
    responses=errors.documented(400, 408, 409, 413, 415)
    | {200: {"model": answers.Job, "description": "The job that this idempotency key made before."}},
    openapi_extra=body.documented(*REQUESTS.values()),
)
def submit_job(service: Engine, payload: body.JsonObject) -> Response:
    """Queue a job. The same idempotency key with the same payload answers 200 and the same job."""
    submission = service.submit(payload)
    return written(submission.job, 201 if submission.created else 200)


@router.post(
    "/jobs/plan",
    dependencies=TRAIN,
    responses=errors.documented(400, 408, 413, 415),
    openapi_extra=body.documented(*REQUESTS.values()),
)
def plan_job(
    service: Engine, payload: body.JsonObject, card_gb: Annotated[float | None, Query(gt=0, le=10_000)] = None
) -> MemoryPlan:
    """Return the memory that a job would need, here or on an NVIDIA card of `card_gb`; submit nothing.

    The body is that of a job; its key and dataset may be left out, and its model may be a folder with a config.json.
    """
    return MemoryPlan.model_validate(service.plan(payload, card_gb=card_gb).document())


@router.get("/jobs", dependencies=READ, response_model=list[answers.Job])
async def list_jobs(
    service: Engine,
    status: answers.Status | None = None,
    limit: Annotated[int | None, Query(ge=1, le=10_000)] = None,
    offset: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
) -> Response:
    """List jobs, newest first."""
    how = threads.at_once if limit is not None and limit + offset <= AT_ONCE else threads.elsewhere
    return await how(_listed, service, status=status, limit=limit, offset=offset)


def _listed(service: Engine, **wanted: Any) -> Response:
    return listed(service.jobs(**wanted))


jobs = APIRouter(prefix="/jobs/{id}", responses=errors.documented(404))


@jobs.get("", dependencies=READ, response_model=answers.Job)
async def get_job(service: Engine, job_id: Id) -> Response:
    """Show one job."""
    return written(await threads.at_once(service.job, job_id))


@jobs.get("/events", dependencies=READ)
def get_events(service: Engine, job_id: Id) -> list[answers.Event]:
    """Return the job's history, oldest first: every change of state, and what else happened."""
    service.job(job_id)
    return [answers.Event.model_validate(asdict(event)) for event in service.events(job_id)]


@jobs.get("/result", dependencies=READ)
def get_result(service: Engine, job_id: Id) -> answers.Result:
    """Return what the job came to; 404 until there is a result."""
    job = service.job(job_id)
    result = service.result(job_id)
    if result is None:
        raise NotFound(f"The job {job.name} is {job.state} and has no result yet.")
    return answers.Result.model_validate(result)


@jobs.get("/checkpoints", dependencies=READ)
def get_checkpoints(service: Engine, job_id: Id) -> list[answers.Checkpoint]:
    """Return the job's checkpoints, oldest first."""
    service.job(job_id)
    return [answers.Checkpoint.of(checkpoint) for checkpoint in service.checkpoints(job_id)]


@jobs.post("/cancel", dependencies=TRAIN, response_model_exclude_unset=True, responses=errors.documented(409))
def cancel_job(service: Engine, job_id: Id) -> answers.Job:
    """End a queued job at once; ask a running one to finish its step, save and stop."""
    return answers.Job.of(service.cancel(job_id))


@jobs.post("/checkpoint", dependencies=TRAIN, response_model_exclude_unset=True, responses=errors.documented(409))
def save_job(service: Engine, job_id: Id) -> answers.Job:
    """Ask a running job for a checkpoint at the end of its step. It is there when `save_requested` is false again.

    A worker that dies before leaves the request to the next one. 409 where the job does not run.
    """
    return answers.Job.of(service.save_now(job_id))


@jobs.post("/retry", dependencies=TRAIN, response_model_exclude_unset=True, responses=errors.documented(409))
def retry_job(service: Engine, job_id: Id) -> answers.Job:
    """Queue a failed or cancelled job again; it goes on from its newest checkpoint."""
    return answers.Job.of(service.retry(job_id))


@jobs.patch(
    "",
    dependencies=TRAIN,
    response_model_exclude_unset=True,
    responses=errors.documented(400, 408, 413, 415),
    openapi_extra=body.documented(JobEdit),
)
def edit_job(service: Engine, job_id: Id, changes: body.JsonObject) -> answers.Job:
    """Change a job's name, tags or notes, in whatever state it is; what is left out stays as it is."""
    return answers.Job.of(service.edit(job_id, changes))


@jobs.delete("", dependencies=TRAIN, status_code=204, responses=errors.documented(409))
def delete_job(service: Engine, job_id: Id) -> None:
    """Remove a finished job with its telemetry and checkpoints; the model it made stays."""
    service.delete(job_id)


router.include_router(jobs)
