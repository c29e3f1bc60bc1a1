"""Pages of a run that are read, not watched: events, configuration, result, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from engine.resources import size_text
from engine.service import Point
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.messages import RunView
from fusion_tui.widgets.shaping import growth_of

STEPS_TIMED = 100  # the last ones, whose mean is shown


class Page(VerticalScroll):
    """A page that scrolls by keyboard and is drawn anew only when its data changed."""

    BINDINGS = bindings("page")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._shown: object = None

    def compose(self) -> ComposeResult:
        """One text, which may be longer than the page."""
        yield Static()

    def show_run(self, view: RunView) -> None:
        """Show this page of a run."""
        data = self.data(view)
        if self._shown is None or data != self._shown:
            self._shown = data
            self.query_one(Static).update(self.draw(view))

    def data(self, view: RunView) -> object:
        """Return what the page depends on."""
        raise NotImplementedError

    def draw(self, view: RunView) -> Table | Text:
        """Return the page."""
        raise NotImplementedError


def grid(rows: Iterable[tuple[str | Text, ...]], head: tuple[str, ...] = ()) -> Table:
    """Return rows as a table without lines; the first column is dim."""
    table = Table(box=None, show_header=bool(head), pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    lines = [tuple(Text(cell) if isinstance(cell, str) else cell for cell in row) for row in rows]
    for index in range(len(head) or max((len(line) for line in lines), default=1)):
        table.add_column(head[index] if head else "", style="dim" if index == 0 else "", no_wrap=index == 0)
    for line in lines:
        table.add_row(*line)
    return table


class EventsPage(Page):
    """What happened, newest first."""

    def data(self, view: RunView) -> object:
        """Events are only ever added."""
        return view.job.id, len(view.events)

    def draw(self, view: RunView) -> Table | Text:
        """One line per event."""
        clock = (time.strftime("%m-%d %H:%M:%S", time.localtime(event.ts)) for event in reversed(view.events))
        return grid(zip(clock, map(fmt.event, reversed(view.events)), strict=True))


class ConfigPage(Page):
    """The settings that run, not those of the form."""

    def data(self, view: RunView) -> object:
        """Names may change, and settings once: those left open are settled when the model before is there."""
        return view.job.id, view.job.hyperparams, view.model, view.dataset

    def draw(self, view: RunView) -> Table | Text:
        """One line per setting."""
        job = view.job
        head = {"id": job.id, "type": job.type, "model": view.model, "dataset": view.dataset}
        rows = head | job.hyperparams | {"tags": ", ".join(job.tags), "notes": job.notes}
        return grid((key, fmt.clean(str(value))) for key, value in rows.items() if value not in ("", None))


class CheckpointsPage(Page):
    """Checkpoints, newest first."""

    def data(self, view: RunView) -> object:
        """All of them: their states change."""
        return view.job.id, view.checkpoints

    def draw(self, view: RunView) -> Table | Text:
        """One line per checkpoint."""
        if not view.checkpoints and not view.job.total_steps:
            return Text("This run makes no steps: what each phase brought is kept until its end, and no checkpoint.")
        if not view.checkpoints:
            return Text(f"No checkpoint yet; one is saved every {view.job.hyperparams.get('save_steps', '?')} steps.")
        rows = (
            (
                str(one.step),
                f"{one.state}, pinned" if one.pinned else one.state,
                fmt.number(one.loss),
                fmt.number(one.eval_loss),
                size_text(one.bytes),
                one.path,
            )
            for one in reversed(view.checkpoints)
        )
        return grid(rows, ("step", "state", "loss", "eval", "size", "where"))


class ResultPage(Page):
    """What the run brought: perplexity before and after, size, time, cost; and from its first step, what it takes."""

    def data(self, view: RunView) -> object:
        """The figures that change while the run works, as they are shown."""
        return view.job.id, view.job.state, view.result, tuple(_measured(view))

    def draw(self, view: RunView) -> Table | Text:
        """The figures in words."""
        rows: list[tuple[str | Text, ...]] = [*_measured(view)]
        if view.result is not None:
            return grid([*_result(view.result), *rows, *_samples(view.result)])
        ended = "The run ended without a result." if view.job.finished else "The result comes with the run's end."
        return grid([("result", ended), *rows])


def _measured(view: RunView) -> Iterator[tuple[str, str]]:
    """Yield what the run takes, planned and measured: memory, and how the time of its last steps is spent."""
    plan, result = view.job.plan or {}, view.result or {}
    peak = (
        result.get("memory_measured_bytes") or max((point.vram_gb or 0.0 for point in view.points), default=0.0) * 1e9
    )
    known = [("planned", plan.get("needed")), ("measured" if view.job.finished else "so far", peak)]
    if memory := ", ".join(f"{word} {size_text(int(amount))}" for word, amount in known if amount):
        yield "memory", memory
    steps = [point for point in view.points[-STEPS_TIMED:] if point.step_s is not None]
    if not steps:
        return
    whole = _mean(steps, "step_s")
    parts = [(part, _mean(steps, f"{part}_s")) for part in ("data", "forward", "backward", "optimizer")]
    split = [f"{part} {fmt.percent(mean / whole)}" for part, mean in parts if mean and whole]
    if saving := _mean(steps, "save_s"):
        split.append(f"and {saving:.2g} s to save")
    yield "a step", " · ".join([f"{whole:.2g} s", *split])


def _mean(points: Sequence[Point], field: str) -> float:
    return sum(getattr(point, field) or 0.0 for point in points) / len(points)


# Perplexities of a result: what they were measured on, and their fields from before to after.
_PERPLEXITIES = (
    ("perplexity", ("ppl_baseline", "ppl_after_growth", "ppl_final")),
    ("on own text", ("self_ppl_baseline", "self_ppl_after_growth", "self_ppl_final")),
    ("on dataset", ("eval_ppl_baseline", "eval_ppl_final")),
)


def _result(result: Mapping[str, Any]) -> list[tuple[str | Text, ...]]:
    get = result.get
    rows: list[tuple[str | Text, ...]] = [
        *((title, _perplexity(result, fields)) for title, fields in _PERPLEXITIES),
        ("ungrown", _ungrown(result)),
        ("final loss", fmt.number(get("loss_final"))),
        ("parameters", _parameters(result)),
        ("grown by", _grown(result)),
        ("layout", _layout(result)),
        ("device time", fmt.duration(get("gpu_seconds"))),
        ("tokens", fmt.count(get("tokens_processed"))),
        ("rows", _rows(result)),
        ("cost", f"${get('cost_usd', 0.0):.4f}" if get("cost_usd") else "not counted: set usd_per_gpu_hour"),
    ]
    return [row for row in rows if row[1]]


def _perplexity(result: Mapping[str, Any], fields: Sequence[str]) -> Text | str:
    """Say how a perplexity went, from before over after the growth to the end, and what that is in percent."""
    found = [result[name] for name in fields if _is_number(result.get(name))]
    if not found:
        return ""
    change = f"  ({100 * (found[-1] / found[0] - 1):+.1f} %)" if len(found) > 1 and found[0] else ""
    names = " (before → grown → trained)" if fields == _PERPLEXITIES[0][1] and len(found) > 2 else ""
    # A contract job has no rows: its main figure is of text that the model wrote.
    own = " on own text" if "layout" in result and fields[0] == "ppl_baseline" else ""
    return Text(f"{' → '.join(map(fmt.number, found))}{change}{own}{names}", "bold")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ungrown(result: Mapping[str, Any]) -> str:
    """Say what training the ungrown model on the same tokens brought."""
    if not _is_number(result.get("ungrown_ppl_final")):
        return ""
    own = result.get("ungrown_self_ppl_final")
    words = f"trained alike ({fmt.clean(str(result.get('ungrown_training_type', '?')))}): perplexity "
    return f"{words}{fmt.number(result['ungrown_ppl_final'])}, on own text {fmt.number(own)}"


def _parameters(result: Mapping[str, Any]) -> str:
    found = [result[key] for key in ("params_before", "params_after") if _is_number(result.get(key)) and result[key]]
    change = f"  ({100 * (found[1] / found[0] - 1):+.1f} %)" if len(found) > 1 and found[0] != found[1] else ""
    return " → ".join(map(fmt.count, found)) + change


def _grown(result: Mapping[str, Any]) -> str:
    """Say what the model grew by, and how far that alone moved its answers."""
    moved, kl, agreed = (result.get(name) for name in ("function_preservation", "logit_kl", "argmax_agreement"))
    parts = [
        growth_of(result),
        fmt.preserved(moved) if moved is not None else "",
        f"KL {kl:.1e}" if kl else "",
        f"{100 * agreed:.4g} % of the likeliest tokens stayed" if agreed is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def _layout(result: Mapping[str, Any]) -> str:
    """Say what a contraction took from which layers, and whether it was healed."""
    if not result.get("layout"):
        return ""
    healed = result.get("healed_steps")
    parts = [
        fmt.clean(str(result["layout"])),
        fmt.layers(result["layers"]) if result.get("layers") else "",
        f"parameter ratio {result['param_ratio']:.3f}" if _is_number(result.get("param_ratio")) else "",
        f"healed for {fmt.plural(healed, 'step')}" if healed else "not healed",
    ]
    return " · ".join(part for part in parts if part)


def _rows(result: Mapping[str, Any]) -> str:
    """Say what became of the dataset's rows; none is lost in silence."""
    names = {"rows_trained": "trained on", "rows_held_out": "held out", "truncated_rows": "cut short"}
    names["dropped_rows"] = "left out"
    return ", ".join(f"{result[key]:,} {word}" for key, word in names.items() if result.get(key) is not None)


def _samples(result: Mapping[str, Any]) -> list[tuple[str | Text, ...]]:
    samples = (("prompt", "sample_prompt"), ("before", "sample_before"), ("after", "sample_after"))
    return [
        (title, fmt.clean(str(result[key])) or "(nothing)") for title, key in samples if result.get(key) is not None
    ]
