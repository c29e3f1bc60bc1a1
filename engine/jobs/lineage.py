"""Where a model comes from: the job that made it, and the models before it, back to one that was imported.

The rule: it is read from the catalogue's own rows, so it holds as far back as these are kept; a job that was deleted
leaves the model that it started from, and no type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine import catalog
from engine.catalog import AnyModel
from store import catalog as entries
from store import jobs, states, telemetry
from store.catalog import Model
from store.library import Database


@dataclass(frozen=True)
class Ancestor:
    """A model that another one was made from, and the job that made it: none for one that was imported."""

    id: str
    name: str
    job_id: str | None = None
    type: str | None = None


@dataclass(frozen=True)
class StartPoint:
    """The checkpoint that a model's job started from, and the job that had saved it: None where that was deleted."""

    id: str
    job_id: str | None
    step: int | None


@dataclass(frozen=True)
class Lineage:
    """A model's origin. `parents` begins with the model that its job started from; the last may be imported.

    Of a job that started from a checkpoint, that is the model that the checkpoint's own job had started from.
    """

    job_id: str | None
    type: str | None
    parents: tuple[Ancestor, ...]
    checkpoint: StartPoint | None = None

    @property
    def parent(self) -> Ancestor | None:
        """The model that the job started from; None where it was removed."""
        return self.parents[0] if self.parents else None


@dataclass(frozen=True)
class Dependents:
    """What needs a model. `runs` that have not ended read it, and it stays while they do; `ended` ones, which failed
    or were cancelled, could not be retried without it; `models` were made from it and would lose their origin."""

    runs: tuple[str, ...]
    ended: tuple[str, ...]
    models: tuple[str, ...]


def dependents(db: Database, model: AnyModel) -> Dependents:
    """Return the names of what needs a model."""
    over = jobs.newest(db, states=(states.FAILED, states.CANCELLED))
    ended = tuple(job.name for job in over if model.id in (job.base_model_id, job.source_model_id))
    made = tuple(one.name for one in entries.models(db) if one.base_model_id == model.id)
    return Dependents(tuple(catalog.users_of(db, model)), ended, made)


def of_models(db: Database, models: Sequence[Model]) -> dict[str, Lineage]:
    """Return the lineage of each of these models, by its id."""
    own = entries.models(db)
    known: dict[str, AnyModel] = {base.id: base for base in entries.base_models(db)}
    known |= {one.id: one for one in own}
    types = jobs.types(db, [one.job_id for one in [*models, *own] if one.job_id])
    starts = {job: StartPoint(*found) for job, found in telemetry.starts(db, types).items()}
    return {
        model.id: Lineage(
            model.job_id,
            types.get(model.job_id or ""),
            _parents(model, known, types),
            starts.get(model.job_id or ""),
        )
        for model in models
    }


def _parents(model: Model, known: Mapping[str, AnyModel], types: Mapping[str, str]) -> tuple[Ancestor, ...]:
    found: list[Ancestor] = []
    child: AnyModel | None = model
    while isinstance(child, Model) and len(found) < len(known):  # no row points in a circle, but a damaged one might
        child = known.get(child.base_model_id)
        if isinstance(child, Model):
            found.append(Ancestor(child.id, child.name, child.job_id, types.get(child.job_id or "")))
        elif child:
            found.append(Ancestor(child.id, child.name))
    return tuple(found)
