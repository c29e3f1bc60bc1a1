"""Dialect A's routes about datasets: list, register, and (ours) show what a model will see of one.

The rule: as in `jobs`: a route translates, calls the service, translates back.
"""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query

from engine.catalog import SEQ_LEN_LEAST, SEQ_LEN_MOST
from engine.errors import InvalidData, UnknownReference
from fusion_tui.api import body, errors
from fusion_tui.api.access import DATASETS, READ, SCHEMES, Engine, Id
from fusion_tui.api.fusion import entries
from store.errors import NotFound

router = APIRouter(
    prefix="/datasets",
    tags=["datasets"],
    dependencies=SCHEMES,
    responses=errors.documented(401, 403, 421, 422, 503),
)
# Each inspection is a process with the training libraries in it: one at a time, the others wait.
_one_at_a_time = threading.Lock()


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
def add_dataset(service: Engine, payload: body.JsonObject) -> entries.DatasetEntry:
    """Register a file that was sent, or a file or folder of this machine, as a new version of `name`.

    The rows are read, judged and copied before the answer. An upload that cannot be registered stays, so that it can be
    under another name or format, or with `drop_bad`.
    """
    request = body.validated(entries.NewDataset, payload)
    asked: dict[str, Any] = {"form": request.format, "drop_bad": request.drop_bad}
    try:
        if request.upload_id:
            entry = service.uploads.register(request.upload_id.lower(), request.name, **asked)
        else:
            entry = service.add_dataset(str(request.path), request.name, **asked)
    except PermissionError:
        raise InvalidData(f"{request.path} may not be read by this user. Change its permissions or copy it.") from None
    return entries.DatasetEntry.model_validate(asdict(entry))


@router.get("/{id}/inspect", dependencies=READ, responses=errors.documented(400, 404))
def inspect_dataset(
    service: Engine,
    dataset_id: Id,
    model: Annotated[str, Query(min_length=1, max_length=200, description="Id or name of the model.")],
    seq_len: Annotated[int | None, Query(ge=SEQ_LEN_LEAST, le=SEQ_LEN_MOST)] = None,
    format: Annotated[entries.Format | None, Query(description="Read the rows as this format.")] = None,
) -> entries.InspectionEntry:
    """Show a dataset as a model will see it: the first batch with its mask, row lengths, truncation, bad rows.

    It takes seconds, and longer when the rows are tokenised for the first time with this model's tokenizer.
    """
    try:
        entry = service.dataset(dataset_id)
    except UnknownReference as error:
        raise NotFound(str(error)) from None
    if entry.id != dataset_id:
        raise NotFound(f"No dataset has the id {dataset_id}.")
    chosen = service.model(model)
    with _one_at_a_time:
        found = service.inspect_dataset(entry.id, chosen.id, seq_len=seq_len, form=format)
    return entries.InspectionEntry.of(entry, chosen, found)
