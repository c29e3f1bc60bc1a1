"""Which model came from which, as a tree in lines.

The rule: every model stands there exactly once, whatever the catalogue's rows say of their origins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.service import AnyModel, Lineage, Model

BUILT_IN = "built in"  # the source of what ships with the package
LINES_MOST = 12  # cells before a name


@dataclass(frozen=True)
class Branch:
    """One model in the tree. `lines` lead to it from the model above, `run` names the one that made it, `children`
    are the names of the models that were made from it."""

    model: AnyModel
    lines: str = ""
    run: str = ""
    lineage: Lineage | None = None
    children: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Where it comes from: built in, imported or own."""
        if isinstance(self.model, Model):
            return "own"
        return BUILT_IN if self.model.source == BUILT_IN else "imported"


def tree(
    base: Sequence[AnyModel], own: Sequence[Model], lineages: Mapping[str, Lineage], runs: Mapping[str, str]
) -> tuple[Branch, ...]:
    """Return all models, each behind the one that it was made from; `runs` are names by a run's id.

    One whose origin was removed begins a tree of its own.
    """
    known = {model.id for model in (*base, *own)}
    below: dict[str, list[Model]] = defaultdict(list)
    for made in sorted(own, key=lambda one: (one.created_at, one.name)):
        below[made.base_model_id if made.base_model_id in known else ""].append(made)
    found: list[Branch] = []
    seen: set[str] = set()

    # Those last that were not met: a damaged catalogue may say of two models that each came from the other.
    waiting: list[tuple[AnyModel, str, str]] = [(root, "", "") for root in (*base, *below[""], *own)]
    while waiting:
        model, lead, lines = waiting.pop(0)
        if model.id in seen:
            continue
        seen.add(model.id)
        children = below[model.id]
        run = runs.get(model.job_id or "", "") if isinstance(model, Model) else ""
        names = tuple(child.name for child in children)
        found.append(Branch(model, _short(lines), run, lineages.get(model.id), names))
        waiting[:0] = [
            (
                child,
                f"{lead}{'  ' if child is children[-1] else '│ '}",
                f"{lead}{'└' if child is children[-1] else '├'} ",
            )
            for child in children
        ]
    return tuple(found)


def _short(lines: str) -> str:
    """Return the lines to a model; of one that is many generations down the last ones, for its name needs room."""
    return lines if len(lines) <= LINES_MOST else f"…{lines[-(LINES_MOST - 1) :]}"
