"""Dialect B's routes about datasets: list, look, get, remove; send a file and have it processed.

The rule: a route translates, calls the service, translates back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse

from engine.data import exporting
from engine.service import Dataset, Service, Version
from engine.transfer.signing import LIFETIME_S
from fusion_tui.api import body, errors
from fusion_tui.api.access import DATASETS, LARGEST, READ, Engine
from fusion_tui.api.felix import dataset_answers as answers
from fusion_tui.api.signed import address, upload_path
from store.errors import NotFound

EXPORTS: dict[str, tuple[Callable[[Path], Iterator[bytes]], str]] = {
    "jsonl": (exporting.jsonl, "application/x-ndjson"),
    "csv": (exporting.csv, "text/csv"),
    "parquet": (exporting.parquet, "application/vnd.apache.parquet"),
}
CONTENT = {media: {"schema": {"type": "string", "format": "binary"}} for _, media in EXPORTS.values()}
Name = Annotated[str, InPath(min_length=1, max_length=100)]
Number = Annotated[int, InPath(ge=1, le=LARGEST)]

router = APIRouter(
    prefix="/datasets",
    tags=["felix: datasets"],
    responses=errors.documented(401, 403, 421, 422, 503),
)


@router.get("", dependencies=READ)
def list_datasets(service: Engine) -> answers.DatasetSummaries:
    """List the datasets by name, each by its newest version."""
    newest = {version.name: version for version in reversed(service.uploads.versions())}
    found = [answers.DatasetSummary.of(version) for _, version in sorted(newest.items())]
    return answers.DatasetSummaries(count=len(found), datasets=found)


@router.post(
    "/upload/url",
    dependencies=DATASETS,
    responses=errors.documented(400, 408, 413, 415),
    openapi_extra=body.documented(answers.NewDatasetUpload),
)
def new_upload(request: Request, service: Engine, payload: body.JsonObject) -> answers.PresignedDataset:
    """Return an address to PUT a file to, and the version of the dataset that is kept for it.

    One that is not made a dataset within a day goes.
    """
    asked = body.validated(answers.NewDatasetUpload, payload)
    upload = service.uploads.expect(
        asked.filename, "application/octet-stream", name=asked.dataset_name, kind=asked.dataset_type
    )
    return answers.PresignedDataset(
        presigned_url=address(request, "PUT", upload_path(upload.id)),
        dataset_id=upload.id,
        version_number=upload.dataset_version or 0,
        expires_in=LIFETIME_S,
    )


@router.post(
    "/upload/process",
    status_code=202,
    dependencies=DATASETS,
    responses=errors.documented(400, 404, 408, 409, 413, 415),
    openapi_extra=body.documented(answers.ProcessUpload),
)
def process_upload(service: Engine, payload: body.JsonObject) -> answers.Processing:
    """Have a file that was sent made a dataset, after those that were asked for before.

    What failed can be processed again; what is under way or ready cannot (409).
    """
    asked = body.validated(answers.ProcessUpload, payload)
    upload = service.uploads.process(asked.dataset_id.lower(), drop_bad=asked.drop_bad)
    return answers.Processing.model_validate(
        {
            "dataset_id": upload.id,
            "dataset_name": upload.dataset_name,
            "version_number": upload.dataset_version,
            "status": upload.state,
            "message": f"GET /felix/datasets/{upload.dataset_name}/{upload.dataset_version} says how it goes.",
        }
    )


@router.get("/{name}", dependencies=READ, responses=errors.documented(404))
def list_versions(service: Engine, name: Name) -> answers.DatasetVersions:
    """List a dataset's versions, newest first."""
    found = [answers.DatasetVersion.of(version) for version in _versions(service, name)]
    return answers.DatasetVersions(count=len(found), versions=found)


@router.delete("/{name}", dependencies=DATASETS, responses=errors.documented(404, 409))
def delete_dataset(service: Engine, name: Name) -> answers.Removed:
    """Remove every version of a dataset; none of them where one is in use (409)."""
    service.uploads.remove(*_versions(service, name))
    return answers.Removed(message=f"The dataset {name} is removed.")


@router.get("/{name}/{version}", dependencies=READ, responses=errors.documented(404))
def get_version(service: Engine, name: Name, version: Number) -> answers.OneVersion:
    """Show one version; of one that is being made, how far it is."""
    return answers.OneVersion.of(service.uploads.version(name, version))


@router.delete("/{name}/{version}", dependencies=DATASETS, responses=errors.documented(404, 409))
def delete_version(service: Engine, name: Name, version: Number) -> answers.Removed:
    """Remove one version; 409 while an unfinished job reads it or it is being made."""
    service.uploads.remove(service.uploads.version(name, version))
    return answers.Removed(message=f"Version {version} of the dataset {name} is removed.")


@router.get("/{name}/{version}/preview", dependencies=READ, responses=errors.documented(404, 409))
def preview_version(
    service: Engine,
    name: Name,
    version: Number,
    limit: Annotated[int, Query(ge=1, le=100, description="How many rows; fewer come where they are very long.")] = 10,
) -> answers.Preview:
    """Show the first rows."""
    rows = exporting.preview(_file(_ready(service, name, version)), limit)
    return answers.Preview(dataset_name=name, version_number=version, count=len(rows), rows=rows)


@router.get(
    "/{name}/{version}/download",
    dependencies=READ,
    response_class=StreamingResponse,
    responses=errors.documented(404, 409) | {200: {"description": "The rows, as a file.", "content": CONTENT}},
)
def download_version(
    service: Engine, name: Name, version: Number, format: Literal["jsonl", "csv", "parquet"] = "jsonl"
) -> StreamingResponse:
    """Return all rows as a file. What a table cannot hold in a cell (lists, objects) is written there as JSON."""
    file = _file(_ready(service, name, version))
    export, media_type = EXPORTS[format]
    headers = {"Content-Disposition": f'attachment; filename="{name}-v{version}.{format}"'}
    return StreamingResponse(export(file), headers=headers, media_type=media_type)


def _versions(service: Service, name: str) -> list[Version]:
    """Return a dataset's versions, newest first. Raises NotFound where there is none."""
    found = service.uploads.versions(name)
    if not found:
        raise NotFound(f"No dataset is called {name}.")
    return found


def _ready(service: Service, name: str, number: int) -> Dataset:
    return service.uploads.version(name, number).need_ready()


def _file(dataset: Dataset) -> Path:
    """Return where a dataset's rows are. Raises NotFound where somebody took them away."""
    path = Path(dataset.path)
    if not path.is_file():
        raise NotFound(f"The rows of the dataset {dataset.name} are gone from {path}. Add them again.")
    return path
