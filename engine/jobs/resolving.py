"""Requests that name things as the second dialect does, brought into the form that `submitting` takes.

The rule: what a name means is decided here, against the catalogue as it is; what a job may be is decided behind
`submit`, as for every other request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine import catalog
from engine.catalog import AnyModel
from engine.errors import Fault, InvalidRequest, UnknownReference
from engine.jobs import submitting
from engine.jobs.submitting import Submission
from engine.paths import NAME_PATTERN
from store import catalog as entries
from store import jobs, telemetry, uploads
from store.catalog import Dataset
from store.library import Database

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
# Five groups between dashes: meant as an id, and in this length no name that anyone gives.
_MEANT_AS_ID = re.compile(r"[0-9a-z]+(-[0-9a-z]+){4}", re.ASCII)
_UNDER_WAY = (uploads.UPLOADING, uploads.UPLOADED, uploads.CONVERTING, uploads.VALIDATING)
_TRIES = 5  # for a free name: another submit may take the one that was found


@dataclass(frozen=True)
class NamedRequest:
    """A request for a finetune. `digest` tells equal requests; `hyperparams` are those that it states.

    `model` is an id, a name, the hub name that it was fetched by, or a checkpoint's id; `datasets` are names, each
    with a version or None. `name` may be any text, and may be taken.
    """

    digest: str
    model: str
    datasets: tuple[tuple[str, int | None], ...]
    hyperparams: Mapping[str, Any]
    name: str | None = None
    project_id: str | None = None


@dataclass(frozen=True)
class Start:
    """What a job starts from: a model, or a checkpoint of a job that trained that model."""

    model: AnyModel
    checkpoint_id: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The field of a request that says so."""
        return {"checkpoint_id": self.checkpoint_id} if self.checkpoint_id else {"base_model_id": self.model.id}


def submit(db: Database, request: NamedRequest, key: str, queue: Callable[..., Submission]) -> Submission:
    """Queue the job of a request under an idempotency key; `queue` is `Service.submit`.

    The same key with the same digest returns the same job, whatever its names mean by now. Raises UnknownReference;
    InvalidRequest; KeyReused; and what `queue` raises.
    """
    from engine.plans import recipe

    if replayed := submitting.replay(db, key, request.digest):
        return replayed
    start = find_start(db, request.model)
    datasets = [find_version(db, i, name, version) for i, (name, version) in enumerate(request.datasets)]
    hyperparams = recipe.complete(db, request.hyperparams, start.model, datasets)
    payload = {
        "type": "finetune",
        "idempotency_key": key,
        **start.fields,
        "dataset_id": datasets[0].id,
        "more_dataset_ids": [dataset.id for dataset in datasets[1:]],
        "project_id": request.project_id,
        "name": request.name,
    }
    for left in reversed(range(_TRIES)):
        named = {**hyperparams, "output_name": _free_name(db, request.name or "")}
        try:
            return queue({**payload, "hyperparams": named}, digest=request.digest)
        except InvalidRequest as error:
            if not left or any(fault.kind != catalog.TAKEN for fault in error.faults):
                raise
    raise AssertionError("the last try returns or raises")


def find_start(db: Database, reference: str) -> Start:
    """Return what a reference to a model or checkpoint means.

    Raises InvalidRequest for what is meant as an id and is none, UnknownReference for what is not there.
    """
    try:
        return Start(catalog.find_model(db, _fetched_as(db, reference) or reference))
    except UnknownReference:
        lowered = reference.lower()
        if not UUID.fullmatch(lowered):
            if len(lowered) >= 32 and _MEANT_AS_ID.fullmatch(lowered):
                message = "is no UUID: give the id or the name of a model, or the id of a checkpoint"
                raise InvalidRequest([Fault(("base_model_id",), message)]) from None
            raise
    found = telemetry.find_checkpoint(db, lowered)
    if found is None:
        raise UnknownReference(f"No model and no checkpoint has the id {reference}.")
    return Start(catalog.find_model(db, catalog.model_of(jobs.get(db, found.job_id))), found.id)


def _fetched_as(db: Database, reference: str) -> str | None:
    """Return the id of the newest imported model that was fetched from the hub under this name."""
    found = [model for model in entries.base_models(db) if model.source == reference and "/" in reference]
    return max(found, key=lambda model: model.created_at).id if found else None


def find_version(db: Database, place: int, name: str, version: int | None) -> Dataset:
    """Return a version of a dataset, or its newest one that is ready.

    Raises UnknownReference; InvalidRequest, at `place` of the datasets, where it is on its way and none is ready.
    """
    # What becomes ready between the two looks is found by the second.
    expected = [one for one in uploads.for_datasets(db, [name]) if version in (None, one.dataset_version)]
    there = [one for one in entries.datasets(db) if one.name == name and version in (None, one.version)]
    if there:
        return max(there, key=lambda one: one.version)
    waiting = next((one for one in expected if one.state in _UNDER_WAY), next(iter(expected), None))
    if waiting:
        said = waiting.detail.get("message", "")
        message = (
            f"version {waiting.dataset_version} of the dataset {name} is {waiting.state}, not ready"
            f"{f' ({said})' if said else ''}; GET /felix/datasets/{name} says how far it is. Wait until it is ready, "
            "or name another version"
        )
        raise InvalidRequest([Fault(("datasets", place), message, "not_ready")])
    of = f"version {version} of a dataset" if version else "dataset"
    raise UnknownReference(f"There is no {of} called '{name}'. See GET /felix/datasets.")


def _free_name(db: Database, wanted: str) -> str | None:
    """Return a name like `wanted` that no model has and no run is going to give; None where it has no usable letter.

    What a name cannot hold becomes a dash; a name that is taken gets a number after it.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).lstrip("._-").rstrip("-")[:100]
    if not re.match(NAME_PATTERN, name):
        return None
    taken = catalog.names_taken(db, name[:90])
    return next(one for one in _numbered(name) if one not in taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name[: 99 - len(str(number))]}-{number}"
        number += 1
