"""Dialect A's routes about models, imported ones and those that jobs made.

The rule: as in `jobs`: a route translates, calls the service, translates back.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request

from engine.transfer import downloads
from fusion_tui.api import errors
from fusion_tui.api.access import MODELS, READ, Engine, Id
from fusion_tui.api.felix import records
from fusion_tui.api.felix.answers import BaseModels
from fusion_tui.api.felix.requests import BaseModelQuery
from fusion_tui.api.fusion import entries
from fusion_tui.api.signed import address, file_path, trained_model

router = APIRouter(tags=["models"], responses=errors.documented(401, 403, 421, 422, 503))


@router.get("/base-models", dependencies=READ)
def list_base_models(
    service: Engine, wanted: Annotated[BaseModelQuery, Query()]
) -> list[entries.BaseModelEntry] | BaseModels:
    """List the imported models; where the query says what they are to support, as `/felix/base-models` does."""
    if wanted.asks:
        return records.base_models(service, wanted)
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
    entry = trained_model(service, model_id)
    return entries.ModelEntry.of(entry, service.lineages([entry])[entry.id])


@router.get("/models/{id}/download", dependencies=MODELS, responses=errors.documented(404))
def download_model(request: Request, service: Engine, model_id: Id) -> entries.Download:
    """List the files of a model that a job made, each with an address to get it from.

    The addresses need no key, end within the hour, and answer range requests. An imported model has none: it lies
    where it was imported from.
    """
    model = trained_model(service, model_id)
    files = [
        entries.DownloadFile(rel=file.rel, size=file.size, url=address(request, "GET", file_path(model, file.rel)))
        for file in downloads.files_of(model)
    ]
    return entries.Download(model_id=model.id, name=model.name, version=model.version, files=files)


@router.delete("/models/{id}", dependencies=MODELS, status_code=204, responses=errors.documented(404, 409))
def delete_model(service: Engine, model_id: Id) -> None:
    """Remove a model that a job made, with its files; the job stays. 409 while an unfinished job needs the model."""
    service.remove_model(trained_model(service, model_id).id)
