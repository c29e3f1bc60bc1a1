"""Dialect B's routes about training jobs.

The rule: a route translates, calls the service, translates back; what may be done to a job is decided there.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError

from engine.errors import Conflict, InvalidRequest, KeyReused
from engine.service import Job, Service, states
from engine.transfer.signing import LIFETIME_S
from fusion_tui.api import body, errors, rate, signed
from fusion_tui.api.access import LARGEST, MODELS, READ, TRAIN, Engine, Id
from fusion_tui.api.felix import answers, records, requests, tailing, translating
from fusion_tui.api.felix.statuses import OF_STATE, Status, states_of

LIMIT = 200  # jobs of a page
SUBMITS_A_MINUTE = 20
_LAST_EVENT = re.compile(r"[0-9]{1,18}", re.ASCII)

router = APIRouter(
    prefix="/training-jobs",
    tags=["felix: training jobs"],
    responses=errors.documented(401, 403, 421, 422, 503),
)


def record(service: Service, job: Job) -> answers.TrainingJob:
    """Return one job's record."""
    return records.jobs(service, [job])[0]


@router.post(
    "",
    dependencies=[*TRAIN, rate.at_most(SUBMITS_A_MINUTE, 60)],
    responses=errors.documented(400, 408, 413, 415, 429),
    openapi_extra=body.documented(requests.TrainingJobRequest),
)
def submit_training_job(
    service: Engine,
    payload: body.JsonObject,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=200,
            description="Sent again with the same body: the same job, made once.",
        ),
    ] = None,
) -> answers.TrainingJob:
    """Queue a training job. At most 20 requests a minute for each key."""
    asked = requests.read(payload)
    wanted = translating.named(asked, allow_full_decoder=service.settings.allow_full_decoder)
    try:
        submission = service.submit_named(wanted, key=idempotency_key)
    except InvalidRequest as error:
        raise translating.faults(error.faults) from None
    except KeyReused as error:
        fault = {"loc": ("header", "Idempotency-Key"), "msg": str(error), "type": "idempotency_key_reused"}
        raise RequestValidationError([fault]) from None
    return record(service, submission.job)


@router.get("", dependencies=READ)
def list_training_jobs(
    service: Engine,
    status: Status | None = None,
    project_id: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=LIMIT)] = LIMIT,
    offset: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
) -> answers.TrainingJobs:
    """List jobs, newest first, whichever dialect made them."""
    wanted: dict[str, Any] = {"project_id": project_id}
    if status is not None:
        wanted["states"] = states_of(status)
        if not wanted["states"]:
            return answers.TrainingJobs(training_jobs=[], count=0, total=0, has_more=False)
    page = records.jobs(service, service.jobs(**wanted, limit=limit, offset=offset))
    total = service.total_jobs(**wanted)
    more = bool(page) and offset + len(page) < total
    return answers.TrainingJobs(training_jobs=page, count=len(page), total=total, has_more=more)


jobs = APIRouter(prefix="/{id}", responses=errors.documented(404))


@jobs.get("", dependencies=READ)
def get_training_job(service: Engine, job_id: Id) -> answers.TrainingJob:
    """Show one job."""
    return record(service, service.job(job_id))


@jobs.get(
    "/logs",
    dependencies=READ,
    response_model=answers.JobLogs,
    responses={200: {"content": {tailing.EVENT_STREAM: {}}}},
)
def get_logs(
    request: Request,
    service: Engine,
    job_id: Id,
    stream: Annotated[bool | None, Query(description="Send the lines as they are written, until the job ends.")] = None,
    last_event_id: Annotated[
        str | None, Header(description="Number of the last line that a stream brought, to go on behind it.")
    ] = None,
) -> answers.JobLogs | Response:
    """Return the kept log; or, by `stream` or `Accept: text/event-stream`, each line as a server-sent event."""
    service.job(job_id)
    if tailing.is_asked(request, stream):
        known = last_event_id is not None and _LAST_EVENT.fullmatch(last_event_id)
        return tailing.response(request, job_id, after=int(last_event_id or 0) if known else 0)
    lines = [records.log_line(job_id, line) for line in service.logs(job_id)]
    return answers.JobLogs(job_id=job_id, logs=lines, total_logs=len(lines))


@jobs.get("/checkpoints", dependencies=READ)
def get_checkpoints(service: Engine, job_id: Id) -> answers.JobCheckpoints:
    """Return the checkpoints that stand, oldest first. Each id can be the `base_model` of a new job."""
    job = service.job(job_id)
    found = records.checkpoints(job, service.checkpoints(job_id))
    return answers.JobCheckpoints(checkpoints=found, count=len(found))


@jobs.post("/stop", dependencies=TRAIN, responses=errors.documented(409))
def stop_training_job(service: Engine, job_id: Id) -> answers.Stopped:
    """End a queued job at once; ask a running one to finish its step, save and stop."""
    job = service.cancel(job_id)
    ended = job.state == states.CANCELLED
    message = "The job is cancelled." if ended else "The job finishes its step, saves a checkpoint and stops."
    return answers.Stopped(message=message, job_id=job_id, status=OF_STATE[job.state])


@jobs.delete("", dependencies=TRAIN, responses=errors.documented(409))
def delete_training_job(service: Engine, job_id: Id) -> answers.Done:
    """Delete a job with its checkpoints, logs and weights; one that runs is stopped first."""
    left = service.discard(job_id)
    message = "The job is deleted." if left is None else "The job finishes its step and stops; then it is deleted."
    return answers.Done(message=message)


@jobs.get("/download", dependencies=MODELS, responses=errors.documented(409))
def download_weights(request: Request, service: Engine, job_id: Id) -> answers.WeightsDownload:
    """Return where the weights of a complete job are, as one zip, for an hour."""
    job = service.job(job_id)
    if not record(service, job).artifact_ready:
        state = "complete, but its model was removed" if job.state == states.COMPLETED else OF_STATE[job.state]
        raise Conflict(f"The job {job.name} is {state}; there are no weights to download.")
    return answers.WeightsDownload(
        job_id=job_id,
        download_url=signed.address(request, "GET", signed.weights_path(job_id)),
        expires_in_seconds=LIFETIME_S,
        file_name=f"{service.model(job.output_model_id or '').name}-weights.zip",
        message="Fetch the address without a key. Ranges are served, so a download that broke off can go on.",
    )


router.include_router(jobs)
