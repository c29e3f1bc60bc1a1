"""The catalogue: base models, trained models, datasets.

The rule: rows are versioned and never change what they point to; the same name again is a new version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from store import fence as fences
from store import uploads
from store.db import all_rows, insert, tuples
from store.library import Database


@dataclass(frozen=True)
class BaseModel:
    """A model that was imported. `precision` is the dtype of its weights, `params` their number."""

    id: str
    family: str
    name: str
    version: int
    params: int
    precision: str
    path: str
    source: str
    created_at: float


@dataclass(frozen=True)
class Model:
    """A model that a job made. `base_model_id` is the model the job started from."""

    id: str
    name: str
    version: int
    family: str
    params: int
    precision: str
    base_model_id: str
    job_id: str | None
    path: str
    status: str
    created_at: float


@dataclass(frozen=True)
class Dataset:
    """An immutable copy of rows. `format` names the row shape, `sha256` is of the file's bytes; `facts` holds what the
    import counted: characters, lengths, rows left out."""

    id: str
    name: str
    version: int
    format: str
    rows: int
    shard_count: int
    bytes: int
    sha256: str
    path: str
    source: str
    status: str
    created_at: float
    facts: dict[str, Any] = field(default_factory=dict)


Kind = TypeVar("Kind", BaseModel, Model, Dataset)
TABLES: dict[type, str] = {BaseModel: "base_models", Model: "models", Dataset: "datasets"}


def _columns(entry: Any) -> dict[str, Any]:
    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in asdict(entry).items()}


def _add(db: Database, entry: Any) -> Any:
    """Insert `entry` as the next version of its name, unless it has one, and return it with that version."""
    table = TABLES[type(entry)]
    # Base and own models share their names, so that the newest version of a name is one model.
    sharing = ("datasets",) if table == "datasets" else ("base_models", "models")
    queries = [f"SELECT max(version) FROM {name} WHERE name = ?" for name in sharing]  # noqa: S608
    versions = [tuples(db, query, [entry.name])[0][0] or 0 for query in queries]
    if table == "datasets":
        versions.append(uploads.newest_version(db, entry.name))  # the ones that are kept for uploads
    numbered = replace(entry, version=entry.version or max(versions) + 1)
    insert(db, table, _columns(numbered))
    return numbered


def add_base_model(db: Database, entry: BaseModel) -> BaseModel:
    """Add a base model; its version is given here."""
    added: BaseModel = _add(db, entry)
    return added


def add_model(db: Database, entry: Model, *, fence: int | None = None) -> Model | None:
    """Add a trained model; its version is given here. The same id twice is one row: ingest may repeat.

    With `fence`, only while the attempt under it has the model's job; else None is returned and nothing written.
    """
    if not fences.holds(db, entry.job_id or "", fence):
        return None
    for known in matching(db, Model, entry.id, begins=False):
        if known.id == entry.id:
            return known
    added: Model = _add(db, entry)
    return added


def add_dataset(db: Database, entry: Dataset) -> Dataset:
    """Add a dataset; its version is given here, unless it is one that was kept for it."""
    added: Dataset = _add(db, entry)
    return added


def matching(db: Database, kind: type[Kind], reference: str, *, begins: bool) -> list[Kind]:
    """Return the entries of a kind that are called `reference` or have it as their id or, where `begins`, its begin.

    The same as reading all and looking, in the time that it takes to read those.
    """
    # Both halves have an index; the last character that there is ends the span of all that begin so.
    like = "id >= ?1 AND id < ?1 || char(1114111)" if begins else "id = ?1"
    sql = f"SELECT * FROM {TABLES[kind]} WHERE name = ?1 OR ({like})"  # noqa: S608
    return [_entry(kind, row) for row in all_rows(db, sql, [reference])]


def titles(db: Database, kind: type[Any], ids: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Return the name and version of each of these entries that is there, by its id."""
    sql = f"SELECT id, name, version FROM {TABLES[kind]} WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608
    return {id: (name, version) for id, name, version in tuples(db, sql, [json.dumps(list(ids))])}


def model_names(db: Database, begin: str) -> set[str]:
    """Return the names of all models, imported and trained, that begin so."""
    where = "WHERE name >= ?1 AND name < ?1 || char(1114111)"
    sql = f"SELECT name FROM base_models {where} UNION SELECT name FROM models {where}"  # noqa: S608
    return {name for (name,) in tuples(db, sql, [begin])}


def _entry(kind: type[Kind], row: Mapping[str, Any]) -> Kind:
    return kind(**({**row, "facts": json.loads(row["facts"])} if kind is Dataset else row))


def base_models(db: Database) -> list[BaseModel]:
    """Return base models by name, newest version first."""
    return [BaseModel(**row) for row in all_rows(db, "SELECT * FROM base_models ORDER BY name, version DESC")]


def models(db: Database) -> list[Model]:
    """Return trained models, newest first."""
    return [Model(**row) for row in all_rows(db, "SELECT * FROM models ORDER BY created_at DESC, version DESC")]


def datasets(db: Database) -> list[Dataset]:
    """Return datasets by name, newest version first."""
    rows = all_rows(db, "SELECT * FROM datasets ORDER BY name, version DESC")
    return [Dataset(**(row | {"facts": json.loads(row["facts"])})) for row in rows]


def remove(db: Database, entry: BaseModel | Model | Dataset) -> None:
    """Remove a catalogue row; the files are the caller's business."""
    db.conn.execute(f"DELETE FROM {TABLES[type(entry)]} WHERE id = ?", [entry.id])  # noqa: S608


def set_path(db: Database, entry: BaseModel | Dataset, path: str) -> None:
    """Point a catalogue row at the same content in another place (a reinstalled package)."""
    db.conn.execute(f"UPDATE {TABLES[type(entry)]} SET path = ? WHERE id = ?", [path, entry.id])  # noqa: S608
