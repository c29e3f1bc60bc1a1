"""Dialect A's routes about datasets: list, register, and (ours) show what a model will see of one.

The rule: as in `jobs`: a route translates, calls the service, translates back.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from engine.catalog import SEQ_LEN_LEAST, SEQ_LEN_MOST
from engine.errors import InvalidData, UnknownReference
from engine.service import Service
from fusion_tui.api import body, errors, threads
from fusion_tui.api.access import DATASETS, READ, Engine, Id
from fusion_tui.api.fusion import entries
from store.errors import NotFound

router = APIRouter(
    prefix="/datasets",
    tags=["datasets"],
    responses=errors.documented(401, 403, 421, 422, 503),
)


@router.get("", dependencies=READ)
def list_datasets(service: Engine) -> list[entries.DatasetEntry]:
    """List the datasets, every version."""
    return [entries.DatasetEntry.model_validate(asdict(entry)) for entry in service.datasets()]


@router.post(
    "",
    status_code=201,
    dependencies=DATASETS,
    responses=errors.documented(400, 404, 408, 409, 413, 415),
    openapi_extra=body.documented(entries.NewDataset),
)
async def add_dataset(request: Request, service: Engine, payload: body.JsonObject) -> entries.DatasetEntry:
    """Register a file that was sent, or a file or folder of this machine, as a new version of `name`.

    The rows are read, judged and copied before the answer. An upload that cannot be registered stays, so that it can be
    under another name or format, or with `drop_bad`.
    """
    wanted = body.validated(entries.NewDataset, payload)
    return await threads.run(request, threads.IMPORTS, _add, service, wanted)


def _add(service: Service, wanted: entries.NewDataset) -> entries.DatasetEntry:
    asked: dict[str, Any] = {"form": wanted.format, "drop_bad": wanted.drop_bad}
    try:
        if wanted.upload_id:
            entry = service.uploads.register(wanted.upload_id.lower(), wanted.name, **asked)
        else:
            entry = service.add_dataset(str(wanted.path), wanted.name, **asked)
    except PermissionError:
        raise InvalidData(f"{wanted.path} may not be read by this user. Change its permissions or copy it.") from None
    return entries.DatasetEntry.model_validate(asdict(entry))


@router.get("/{id}/inspect", dependencies=READ, responses=errors.documented(400, 404))
async def inspect_dataset(
    request: Request,
    service: Engine,
    dataset_id: Id,
    *,
    model: Annotated[str, Query(min_length=1, max_length=200, description="Id or name of the model.")],
    seq_len: Annotated[int | None, Query(ge=SEQ_LEN_LEAST, le=SEQ_LEN_MOST)] = None,
    format: Annotated[entries.Format | None, Query(description="Read the rows as this format.")] = None,
) -> entries.InspectionEntry:
    """Show a dataset as a model will see it: the first batch with its mask, row lengths, truncation, bad rows.

    It takes seconds, and longer when the rows are tokenised for the first time with this model's tokenizer. One is
    made at a time; where eight wait already, the answer is 503, and `Retry-After` says when to ask again.
    """
    return await threads.run(
        request, threads.INSPECTIONS, _inspect, service, dataset_id, model, seq_len=seq_len, form=format
    )


def _inspect(
    service: Service, dataset_id: str, model: str, *, seq_len: int | None, form: str | None
) -> entries.InspectionEntry:
    try:
        entry = service.dataset(dataset_id)
    except UnknownReference as error:
        raise NotFound(str(error)) from None
    if entry.id != dataset_id:
        raise NotFound(f"No dataset has the id {dataset_id}.")
    chosen = service.model(model)
    found = service.inspect_dataset(entry.id, chosen.id, seq_len=seq_len, form=form)
    return entries.InspectionEntry.of(entry, chosen, found)
