"""All that is known of one model, for the pane beside the list."""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.text import Text

from engine.service import Dependents, Lineage, Model
from fusion_tui import format as fmt
from fusion_tui.widgets.facts import grid
from fusion_tui.widgets.models_table import size_words
from fusion_tui.widgets.models_tree import Branch

LISTED = 4  # names, before the rest is a number


def card(branch: Branch, size: int | None) -> RenderableType:
    """Return what is known of a model."""
    model = branch.model
    rows = [
        ("kind", f"{branch.kind} · {fmt.clean(model.family)} · added {_day(model.created_at)}"),
        ("weights", f"{model.params:,} parameters · {fmt.clean(model.precision)} · {size_words(size)} on disk"),
    ]
    if isinstance(model, Model):
        rows += [("made by", _made_by(branch)), ("lineage", _chain(model.name, branch.lineage))]
    else:
        rows.append(("source", fmt.clean(model.source)))
    if branch.children:
        rows.append(("became", names(branch.children)))
    rows += [("files", fmt.clean(model.path)), ("id", model.id)]
    title = Text(fmt.clean(f"{model.name} v{model.version}"), style="bold")
    return Group(title, grid(rows))


def _made_by(branch: Branch) -> str:
    lineage = branch.lineage
    if lineage is None or not branch.run:
        return "a run that was deleted"
    words = f"{fmt.clean(branch.run)} ({lineage.type or 'its type is gone'})"
    start = lineage.checkpoint
    return f"{words}, from the checkpoint of step {start.step}" if start and start.step is not None else words


def _chain(name: str, lineage: Lineage | None) -> str:
    parents = [one.name for one in lineage.parents] if lineage else []
    whole = bool(lineage and lineage.parents and lineage.parents[-1].job_id is None)
    return fmt.clean(" ← ".join([name, *parents, *([] if whole else ["(removed)"])]))


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def names(found: tuple[str, ...]) -> str:
    """Return names in a line, the first ones of many."""
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return fmt.clean(", ".join(found[:LISTED]) + more)


def loss_of(branch: Branch, needed: Dependents, *, ours: bool) -> str:
    """Return what it means to delete a model; `ours` says that its files lie in the data folder and go with it."""
    words = [
        "Its files go too." if ours else f"Its files stay in {fmt.clean(branch.model.path)}.",
        f"Made from it: {names(needed.models)}; they stay, and lose their origin." if needed.models else "",
        f"These could not be retried: {names(needed.ended)}." if needed.ended else "",
        "The next start brings it back, for it ships with the package." if branch.kind == "built in" else "",
    ]
    return "\n".join(filter(None, words))
