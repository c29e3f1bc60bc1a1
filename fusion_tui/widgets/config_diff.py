"""What differs between runs: their settings as resolved, where they stand and what they brought, side by side.

The rule: a setting that is the same in all runs is left out, and no value is cut: two that look alike are alike, to
ten digits of a number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from engine.service import Job
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.messages import ComparedRun, Overview
from fusion_tui.widgets.plot import LETTERS, STRANDS

ABSENT = object()  # the value of a setting that a configuration does not have
LABEL_CELLS = 22  # at most, of the first column
NAMES = ("output_name",)  # settings that differ between any two runs and say nothing


def differing(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[str, ...]]]:
    """Return each setting that is not the same in all configurations, with its values as text.

    Settings within settings are named `outer.inner`; where a configuration lacks one, a dash stands.
    """
    flat = [dict(_flat(config)) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config)
    values = {key: tuple(_text(config.get(key, ABSENT)) for config in flat) for key in keys}
    return [(key, found) for key, found in values.items() if len(set(found)) > 1]


def _flat(config: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{outer}{key}.")
        else:
            yield f"{outer}{key}", value


def _text(value: Any) -> str:
    if value is ABSENT:
        return "–"
    if isinstance(value, float):
        return f"{value:.10g}"  # 0.0003, and not what floating point makes of it
    if isinstance(value, list):
        return fmt.clean(", ".join(map(str, value))) or "none"
    return fmt.clean(str(value)) if value not in (None, "") else "none"


def config_of(run: ComparedRun) -> dict[str, Any]:
    """Return what a run was made with: the settings that ran, not those of the form."""
    head = {"type": run.job.type, "model": run.model, "dataset": run.dataset}
    settings = {key: value for key, value in run.job.hyperparams.items() if key not in NAMES}
    return head | settings | {"tags": run.job.tags}


class ConfigDiff(VerticalScroll):
    """The table, which may be longer than its box; a column for each run."""

    BINDINGS = bindings("page")

    def __init__(
        self, places: Mapping[str, int], *, clock: Callable[[], float] = time.time, id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self._places = places
        self._clock = clock
        self._shown: object = None

    def compose(self) -> ComposeResult:
        """One text."""
        yield Static()

    def show_runs(self, runs: tuple[ComparedRun, ...], overview: Overview) -> None:
        """Show these runs, and draw where a cell has changed."""
        facts = [(name, tuple(cell(run, overview, self._clock()) for run in runs)) for name, cell in FACTS]
        settings = differing([config_of(run) for run in runs])
        heads = tuple((self._places[run.job.id], fmt.clean(run.job.name)) for run in runs)
        if (heads, facts, settings) != self._shown:
            self._shown = (heads, facts, settings)
            self.query_one(Static).update(_page(heads, facts, settings))


Rows = Sequence[tuple[str, tuple[str, ...]]]


def _page(heads: Sequence[tuple[int, str]], facts: Rows, settings: Rows) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    longest = max(len(name) for name, _ in (*facts, *settings))
    table.add_column("", style="dim", width=min(longest, LABEL_CELLS), overflow="fold")
    for place, name in heads:
        # A long name is cut: its letter stands for it.
        title = Text(f"{LETTERS[place]} {name}", f"bold color({STRANDS[place]})", no_wrap=True, overflow="ellipsis")
        table.add_column(title, ratio=1, overflow="fold")
    for name, cells in (*facts, ("", ()), *settings):
        table.add_row(name, *map(Text, cells))
    if settings or len(heads) < 2:
        return table
    return Group(table, Text("The settings of these runs are the same.", style="dim"))


def _last(run: ComparedRun, phase: str, field: str) -> float | None:
    values = (getattr(point, field) for point in reversed(run.points) if point.phase == phase)
    return next((value for value in values if value is not None), None)


def _perplexity(run: ComparedRun) -> str:
    result = run.result or {}
    known = [fmt.number(result[key]) for key in ("ppl_baseline", "ppl_final") if result.get(key) is not None]
    return " → ".join(known) or "–"


def _steps(job: Job) -> str:
    return f"{job.step}/{job.total_steps}" if job.total_steps else fmt.percent(job.progress)


def _took(job: Job, now: float) -> str:
    return fmt.duration((job.finished_at or now) - job.started_at) if job.started_at else "–"


# Where a run stands, whether that differs or not.
FACTS: tuple[tuple[str, Callable[[ComparedRun, Overview, float], str]], ...] = (
    ("state", lambda run, seen, _: fmt.state(run.job, seen.evidence.get(run.job.id)).plain),
    ("step", lambda run, _, __: _steps(run.job)),
    ("loss", lambda run, _, __: fmt.number(_last(run, "train", "loss"))),
    ("eval loss", lambda run, _, __: fmt.number(_last(run, "eval", "loss"))),
    ("perplexity", lambda run, _, __: _perplexity(run)),
    ("tok/s", lambda run, _, __: fmt.count(_last(run, "train", "throughput"))),
    ("time", lambda run, _, now: _took(run.job, now)),
)
