"""The catalogue as a user sees it: names and ids of models and datasets, imports, removals, the starter pair.

Functions take a `Service`'s store, home and clock through their parameters; `engine.service` is the way in.
"""

from __future__ import annotations

import difflib
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from engine import atomic, importing
from engine.errors import Conflict, Fault, InvalidRequest, UnknownReference
from engine.importing import Progress
from engine.paths import NAME_PATTERN, STARTER_MODEL, STARTER_ROWS, Home
from store import Store, catalog, jobs, states
from store.catalog import BaseModel, Dataset, Model
from store.library import Database

STARTER = "starter"
# Fixed ids, so that a script's reference to the starter pair holds on every machine.
STARTER_MODEL_ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "fusion-tui/starter-model"))
STARTER_DATASET_ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "fusion-tui/starter-data"))

AnyModel = BaseModel | Model
Entry = TypeVar("Entry", BaseModel, Model, Dataset, AnyModel)


def _pick(entries: Sequence[Entry], reference: str, kind: str, remedy: str) -> Entry:
    """Return the entry with this id, or the newest version of this name, or the one id that begins so."""
    for entry in entries:
        if entry.id == reference:
            return entry
    named = [entry for entry in entries if entry.name == reference]
    if named:
        return max(named, key=lambda entry: entry.version)
    prefixed = [entry for entry in entries if len(reference) >= 4 and entry.id.startswith(reference)]
    if len(prefixed) == 1:
        return prefixed[0]
    if prefixed:
        raise UnknownReference(f"'{reference}' fits {len(prefixed)} {kind}s; give more of the id.")
    names = sorted({entry.name for entry in entries})
    close = difflib.get_close_matches(reference, names, n=1)
    known = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(names[:8]) or 'none yet'}."
    raise UnknownReference(f"No {kind} is called '{reference}'. {known} {remedy}")


def find_model(db: Database, reference: str) -> AnyModel:
    """Return the base or trained model that `reference` (id, name, unique id prefix) names. Raises UnknownReference."""
    entries: list[AnyModel] = [*catalog.base_models(db), *catalog.models(db)]
    return _pick(entries, reference, "model", "Add one with: fusion-tui models add PATH_OR_HUB_ID --name NAME")


def find_dataset(db: Database, reference: str) -> Dataset:
    """Return the dataset that `reference` names. Raises UnknownReference."""
    return _pick(catalog.datasets(db), reference, "dataset", "Add one with: fusion-tui datasets add FILE --name NAME")


def check_name(name: str) -> None:
    """Raise InvalidRequest unless `name` can name a catalogue entry."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            [Fault(("name",), f"'{name}' cannot be a name: use letters, digits, '.', '_' and '-', at most 100")]
        )


def seed_starter(store: Store, now: float) -> None:
    """Put the starter model and data that ship with the package into the catalogue, once."""
    db = store.read()
    have = {model.id: model.path for model in catalog.base_models(db)}
    have |= {dataset.id: dataset.path for dataset in catalog.datasets(db)}
    if have.get(STARTER_MODEL_ID) == str(STARTER_MODEL) and have.get(STARTER_DATASET_ID) == str(STARTER_ROWS):
        return
    if not STARTER_MODEL.joinpath("config.json").exists() or not STARTER_ROWS.exists():
        return
    facts = importing.inspect_model(STARTER_MODEL)
    data = importing.check_rows(STARTER_ROWS)
    model = BaseModel(
        STARTER_MODEL_ID, facts.family, STARTER, 0, facts.params, facts.precision, str(STARTER_MODEL), "built in", now
    )
    dataset = Dataset(
        id=STARTER_DATASET_ID,
        name=STARTER,
        version=0,
        format=data.format,
        rows=data.rows,
        shard_count=1,
        bytes=data.bytes,
        sha256=data.sha256,
        path=str(STARTER_ROWS),
        source="built in",
        status="ready",
        created_at=now,
    )
    with store.write() as writer:
        # Looked at again under the write lock: another process may have been first.
        present = {row.id for row in catalog.base_models(writer)} | {row.id for row in catalog.datasets(writer)}
        if model.id in present:
            catalog.set_path(writer, model, model.path)
        else:
            catalog.add_base_model(writer, model)
        if dataset.id in present:
            catalog.set_path(writer, dataset, dataset.path)
        else:
            catalog.add_dataset(writer, dataset)


def add_dataset(store: Store, home: Home, source: str, name: str, *, now: float, progress: Progress) -> Dataset:
    """Import a file of rows as a new version of `name`. Raises InvalidData, NoSpace, InvalidRequest."""
    check_name(name)
    file = Path(source).expanduser().absolute()
    facts = importing.check_rows(file, progress)
    dataset_id = str(uuid.uuid4())
    progress("copying", None)
    copy = importing.copy_rows(file, home.dataset(dataset_id), facts)
    entry = Dataset(
        id=dataset_id,
        name=name,
        version=0,
        format=facts.format,
        rows=facts.rows,
        shard_count=1,
        bytes=facts.bytes,
        sha256=facts.sha256,
        path=str(copy),
        source=str(file),
        status="ready",
        created_at=now,
    )
    try:
        with store.write() as db:
            return catalog.add_dataset(db, entry)
    except BaseException:
        atomic.remove_tree(home.dataset(dataset_id))
        raise


def add_model(
    store: Store, home: Home, source: str, name: str, *, now: float, progress: Progress, python: str
) -> BaseModel:
    """Import a model from a folder (used in place), a GGUF file (converted) or the hub (its local snapshot).

    Raises InvalidData, NoSpace, InvalidRequest.
    """
    check_name(name)
    model_id = str(uuid.uuid4())
    gguf = importing.find_gguf(source)
    if gguf:
        folder = home.model(model_id)
        importing.convert_gguf(gguf, folder, python=python, progress=progress)
    elif Path(source).expanduser().is_dir():
        folder = Path(source).expanduser().absolute()
    else:
        folder = importing.fetch_hub(source, progress)
    try:
        facts = importing.inspect_model(folder)
        entry = BaseModel(model_id, facts.family, name, 0, facts.params, facts.precision, str(folder), source, now)
        with store.write() as db:
            return catalog.add_base_model(db, entry)
    except BaseException:
        if gguf:
            atomic.remove_tree(folder)
        raise


def _users_of(db: Database, entry: AnyModel | Dataset) -> list[str]:
    """Return the names of unfinished jobs that read `entry`."""
    return [
        job.name
        for job in jobs.newest(db)
        if job.state not in states.FINISHED and entry.id in (job.base_model_id, job.source_model_id, job.dataset_id)
    ]


def remove(store: Store, home: Home, entry: AnyModel | Dataset) -> None:
    """Take an entry out of the catalogue with the files that are the data folder's own. Raises Conflict."""
    with store.write() as db:
        users = _users_of(db, entry)
        if users:
            raise Conflict(
                f"'{entry.name}' is in use by {', '.join(users)}. Cancel the run first, or wait for its end."
            )
        catalog.remove(db, entry)
    for folder in (home.dataset(entry.id), home.model(entry.id)):
        atomic.remove_tree(folder)
