"""Dialect B's routes whose work this version does not do yet: projects, deployments, inference.

The rule: each answers 422 by the one switch, `engine.jobs.features`, until what it stands for has come.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from engine.jobs import features
from fusion_tui.api import body, errors
from fusion_tui.api.access import TRAIN, Engine, Id, as_uuid
from fusion_tui.api.felix import answers
from store.errors import NotFound

_ERRORS = errors.documented(400, 401, 403, 408, 413, 415, 421, 422, 503)
router = APIRouter(tags=["felix: not yet"], dependencies=TRAIN, responses=_ERRORS)
inference = APIRouter(tags=["felix: not yet"], dependencies=TRAIN, responses=_ERRORS)
# What these read is not looked at yet, so any object will do.
_ANY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


def _checkpoint_id(checkpoint_id: str) -> str:
    return as_uuid(checkpoint_id)


@router.post("/projects", openapi_extra=_ANY)
def make_project(payload: body.JsonObject) -> answers.Done:
    """Not in this version yet."""
    features.need("projects", ())
    raise AssertionError(payload)


@router.post("/projects/{id}/deployments", responses=errors.documented(404), openapi_extra=_ANY)
def deploy_job(project_id: Id, payload: body.JsonObject) -> answers.Done:
    """Not in this version yet."""
    features.need("deployments", ())
    raise AssertionError((project_id, payload))


@router.post("/training-jobs/{id}/checkpoints/{checkpoint_id}/deploy", responses=errors.documented(404))
def deploy_checkpoint(
    service: Engine, job_id: Id, checkpoint_id: Annotated[str, Depends(_checkpoint_id)]
) -> answers.Done:
    """Not in this version yet."""
    service.job(job_id)
    if checkpoint_id not in {one.id for one in service.checkpoints(job_id)}:
        raise NotFound(f"The job has no checkpoint with the id {checkpoint_id}.")
    features.need("deployments", ())
    raise AssertionError(checkpoint_id)


@inference.post("/inference", openapi_extra=_ANY)
def infer(payload: body.JsonObject) -> answers.Done:
    """Not in this version yet."""
    features.need("inference", ())
    raise AssertionError(payload)
