"""Dialect A's routes about models, imported ones and those that jobs made.

The rule: as in `jobs`: a route translates, calls the service, translates back.
"""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from engine.errors import UnknownReference
from engine.service import Model
from fusion_tui.api import errors
from fusion_tui.api.access import READ, SCHEMES, Engine, Id
from fusion_tui.api.fusion import entries
from store.errors import NotFound

router = APIRouter(tags=["models"], dependencies=SCHEMES, responses=errors.documented(401, 403, 421, 422, 503))


@router.get("/base-models", dependencies=READ)
def list_base_models(service: Engine) -> list[entries.BaseModelEntry]:
    """List the imported models."""
    return [entries.BaseModelEntry.model_validate(asdict(entry)) for entry in service.base_models()]


@router.get("/models", dependencies=READ)
def list_models(service: Engine) -> list[entries.ModelEntry]:
    """List the models that jobs made, newest first."""
    models_made = service.models()
    lineages = service.lineages(models_made)
    return [entries.ModelEntry.of(entry, lineages[entry.id]) for entry in models_made]


@router.get("/models/{id}", dependencies=READ, responses=errors.documented(404))
def get_model(service: Engine, model_id: Id) -> entries.ModelEntry:
    """Show a model that a job made."""
    try:
        entry = service.model(model_id)
    except UnknownReference as error:
        raise NotFound(str(error)) from None
    if not isinstance(entry, Model) or entry.id != model_id:
        raise NotFound(f"No job made a model with the id {model_id}.")
    return entries.ModelEntry.of(entry, service.lineages([entry])[entry.id])
