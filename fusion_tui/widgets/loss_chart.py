"""The live chart of one run: raw and smoothed values, evaluations, marks, or its layers; a caption, a legend in words.

The rule: it draws at most four times a second, and only when its points, its look or its size changed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from rich.text import Text
from textual import events
from textual.timer import Timer
from textual.widgets import Static

from engine.service import Point
from fusion_tui import format as fmt
from fusion_tui.messages import RunView
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

DRAW_EVERY_S = 0.25
LEAST_FOR_LEGEND = 8  # lines of the box; below, the curve needs them all


class LossChart(Static):
    """A chart as large as its box, with the caption in its first line."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.look = Look()
        self.drawn = 0
        self._view: RunView | None = None
        self._done: tuple[object, ...] = ()
        self._drawn_at = float("-inf")
        self._timer: Timer | None = None

    @property
    def points(self) -> tuple[Point, ...]:
        """What the chart shows now."""
        return self._view.points if self._view else ()

    @property
    def is_current(self) -> bool:
        """Whether all that is known is drawn: redraws wait for one another."""
        return self._timer is None and self._state() == self._done

    def show_run(self, view: RunView | None) -> None:
        """Show a run, or nothing."""
        self._view = view
        self._request()

    def set_look(self, look: Look) -> None:
        """Draw in another way."""
        self.look = look
        self._request()

    def on_resize(self, _: events.Resize) -> None:
        """The box changed, or came into sight."""
        self._request()

    def _request(self) -> None:
        """Draw now, or as soon as a quarter of a second has passed since the last time."""
        if self._timer is not None or self._state() == self._done:
            return
        wait = self._drawn_at + DRAW_EVERY_S - time.monotonic()
        if wait <= 0:
            self._draw()
        else:
            self._timer = self.set_timer(wait, self._draw)

    def _state(self) -> tuple[object, ...]:
        view = self._view
        parts = (view.points, view.aside, len(view.events), view.checkpoints, view.job.id) if view else ()
        return (*parts, self.look, self.size)

    def _draw(self) -> None:
        self._timer = None
        width, height = self.size
        if not self.is_attached or not width or not height:
            return
        self._done = self._state()
        self._drawn_at = time.monotonic()
        self.drawn += 1
        self.update(self._picture(width, height), layout=False)

    def _picture(self, width: int, height: int) -> Text:
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
    parts.append(Text(f"by {look.axis}{', log y' if look.log_y else ''}", style="dim"))
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
