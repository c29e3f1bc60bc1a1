"""Dialect B's routes about models: those to start from, and those that jobs made.

The rule: as in `jobs`: a route translates, calls the service, translates back.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from engine.service import states
from fusion_tui.api import errors
from fusion_tui.api.access import READ, Engine
from fusion_tui.api.felix import answers, records
from fusion_tui.api.felix.requests import BaseModelQuery

router = APIRouter(tags=["felix: models"], responses=errors.documented(401, 403, 421, 422, 503))


@router.get("/base-models", dependencies=READ)
def list_base_models(service: Engine, wanted: Annotated[BaseModelQuery, Query()]) -> answers.BaseModels:
    """List the models to start from, of those that are as wanted."""
    return records.base_models(service, wanted)


@router.get("/trained-models", dependencies=READ)
def list_trained_models(service: Engine) -> answers.TrainedModels:
    """List the models of all successful jobs, newest first."""
    return records.trained_models(service, service.jobs(states=(states.COMPLETED,)))
