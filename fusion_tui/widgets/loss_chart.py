"""The live chart of one run: raw and smoothed values, evaluations, marks, or its layers; a caption, a legend in words.

The rule: every line and every sign of the picture is named in its caption or its legend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from rich.text import Text

from engine.service import Point
from fusion_tui import format as fmt
from fusion_tui.export import Sheet, curve_sheet, layers_sheet
from fusion_tui.messages import RunView
from fusion_tui.widgets.chart import Chart
from fusion_tui.widgets.curve import LAYERS, METRICS, SMOOTHING, Curve, Look, trace
from fusion_tui.widgets.layer_bars import draw_layers
from fusion_tui.widgets.plot import (
    EVAL,
    RAW,
    RIVAL,
    RIVAL_EVAL_MARKER,
    RIVAL_MARKER,
    SIGNS,
    SMOOTHED,
    draw,
)
from fusion_tui.widgets.shaping import layers_of

LEAST_FOR_LEGEND = 8  # lines of the box; below, the curve needs them all


class LossChart(Chart):
    """A chart with the caption in its first line."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._view: RunView | None = None

    @property
    def points(self) -> tuple[Point, ...]:
        """What the chart shows now."""
        return self._view.points if self._view else ()

    def show_run(self, view: RunView | None) -> None:
        """Show a run, or nothing."""
        self._view = view
        self.request()

    def data(self) -> tuple[object, ...]:
        """What is drawn of the run."""
        view = self._view
        return (view.points, view.aside, len(view.events), view.checkpoints, view.job.id) if view else ()

    def sheet(self) -> Sheet | None:
        """The run's whole curve, or its layers."""
        view = self._view
        if view and (self.look.metric == LAYERS or not view.job.total_steps):
            layers = layers_of(view)
            return layers_sheet(layers.title, layers.values, layers.signs) if layers else None
        return curve_sheet([(view.job, view.points)], self.look) if view and view.points else None

    def picture(self, width: int, height: int) -> Text:
        """The curve as the look wants it, or the layers."""
        view = self._view
        if view is None:
            return Text("")
        if self.look.metric == LAYERS or not view.job.total_steps:
            return _layers(view, width, height)
        curve = trace(view.points, self.look, view.events, view.checkpoints, view.aside)
        caption = _caption(curve, self.look)
        parts = [caption, draw(curve, self.look, width, height - 1)]
        if height >= LEAST_FOR_LEGEND and (legend := _legend(curve)):
            parts = [caption, draw(curve, self.look, width, height - 2), legend]
            legend.truncate(width, overflow="ellipsis")
        caption.truncate(width, overflow="ellipsis")
        return Text("\n").join(parts)


def _layers(view: RunView, width: int, height: int) -> Text:
    """Return the chart of a run's layers with its caption; what it waits for where nothing is known of them."""
    layers = layers_of(view)
    if layers is None:
        return Text("no layer was judged yet", style="dim")
    caption = Text.assemble(layers.title, (f" · {layers.note}" if layers.note else "", f"color({EVAL})"))
    caption.truncate(width, overflow="ellipsis")
    return Text("\n").join([caption, draw_layers(layers, width, height - 1)])


def _caption(curve: Curve, look: Look) -> Text:
    """Say in words what the lines are and where they stand."""
    raw, smoothed, judged = curve.last
    name = METRICS[look.metric]
    parts = [Text(f"{name} {fmt.number(raw)}", style=f"color({SMOOTHED})")]
    if smoothed is not None:
        parts = [Text(f"∙ {name} {fmt.number(raw)}", style=f"color({RAW})")]
        parts.append(Text(f"⠶ smoothed {SMOOTHING[look.level]:g}: {fmt.number(smoothed)}", style=f"color({SMOOTHED})"))
    if judged is not None:
        parts.append(Text(f"◆ eval {fmt.number(judged)}", style=f"color({EVAL})"))
    parts.append(Text(look.words, style="dim"))
    return Text(" · ").join(parts)


def _legend(curve: Curve) -> Text:
    """Say what the marks mean and how many there are of each; empty where there are none."""
    words: dict[str, Callable[[int], str]] = {
        "cycle": lambda _: "cycle ends",
        "resume": lambda count: f"resumed{_times(count)}",
        "oom": lambda count: f"out of memory{_times(count)}",
        "spike": lambda count: f"{count} skipped",
        "rollback": lambda count: f"lr halved{_times(count)}",
        "early_stop": lambda _: "stopped early",
        "checkpoint": lambda count: fmt.plural(count, "checkpoint"),  # last: it is the first to be cut off
    }
    compared = [
        Text(f"{sign} {what} {fmt.number(line[1][-1])}", style=f"color({RIVAL})")
        for sign, what, line in (
            (RIVAL_MARKER, "ungrown", curve.rival),
            (RIVAL_EVAL_MARKER, "ungrown eval", curve.rival_evals),
        )
        if line[0]
    ]
    counts = Counter(kind for kind, _ in curve.marks)
    signs = {kind: SIGNS[kind] for kind in words if counts[kind]}
    parts = [
        Text.assemble((sign, f"color({color})"), f" {words[kind](counts[kind])}")
        for kind, (sign, color) in signs.items()
    ]
    return Text(" · ").join([*compared, *parts])


def _times(count: int) -> str:
    return f" {count} times" if count > 1 else ""
