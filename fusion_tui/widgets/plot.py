"""Draws a curve as text with plotext, whose figure is one global that leaks between draws.

The rule: this is the only module that touches plotext; each draw starts from a cleared figure, on the UI thread.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from fusion_tui import format as fmt
from fusion_tui.widgets.curve import Curve, Line, Look

# 256-colour numbers that are readable on dark and on light ground; the markers differ too, for terminals without.
RAW, SMOOTHED, EVAL, RIVAL = 245, 33, 208, 136
RAW_MARKER, LINE_MARKER, EVAL_MARKER = "·", "braille", "◆"
RIVAL_MARKER, RIVAL_EVAL_MARKER = "-", "◇"
# The sign at the top of each kind of mark, and its colour.
SIGNS: dict[str, tuple[str, int]] = {
    "checkpoint": ("▪", 240),
    "cycle": ("┬", 66),
    "resume": ("↻", 133),
    "oom": ("▼", 166),
    "spike": ("✗", 160),
    "rollback": ("↓", 160),
    "early_stop": ("■", 71),
}
LEAST_WIDTH, LEAST_HEIGHT = 16, 4
# Of runs that are compared, the first to the eighth: neither ground nor a 16-colour terminal hides one of them.
STRANDS = (33, 208, 71, 133, 160, 37, 136, 245)
LETTERS = "ABCDEFGH"
STAMP_EVERY = 12  # cells between two letters on the curves, of all runs together


@dataclass(frozen=True)
class Strand:
    """One of several runs in a chart: its place, from 0, gives it a letter and a colour."""

    place: int
    line: Line
    evals: Line

    @property
    def letter(self) -> str:
        """The letter that stands for the run."""
        return LETTERS[self.place]

    @property
    def color(self) -> int:
        """The number of its colour."""
        return STRANDS[self.place]


def draw(curve: Curve, look: Look, width: int, height: int) -> Text:
    """Return the chart, `width` × `height` cells. Text that fits stands in where it does not or nothing is there."""
    if curve.empty or width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return Text("no points yet" if curve.empty else "too small for a chart", style="dim")
    plt = _begin(width, height)
    top = _scale(plt, curve.lines, look, width, height)
    for kind, x in curve.marks:
        if kind != "spike":  # there may be many
            plt.vertical_line(x, color=SIGNS[kind][1])
    _line(plt, curve.rival, look, RIVAL_MARKER, RIVAL)
    if curve.smoothed[0]:
        _line(plt, curve.raw, look, RAW_MARKER, RAW)
        _line(plt, curve.smoothed, look, LINE_MARKER, SMOOTHED)
    else:
        _line(plt, curve.raw, look, LINE_MARKER, SMOOTHED)
    for judged, marker, color in ((curve.rival_evals, RIVAL_EVAL_MARKER, RIVAL), (curve.evals, EVAL_MARKER, EVAL)):
        if judged[0]:
            plt.scatter(judged[0], _ys(judged, look), marker=marker, color=color)
    for kind, x in curve.marks:
        sign, color = SIGNS[kind]
        plt.text(sign, x=x, y=top, alignment="center", color=color)
    return _end(plt)


def draw_overlay(strands: Sequence[Strand], look: Look, width: int, height: int) -> Text:
    """Return the curves of several runs in one chart: each is stamped with its letter, its evaluations are small ones.

    Text that fits stands in where the chart does not, or nothing is there.
    """
    strands = [strand for strand in strands if strand.line[0] or strand.evals[0]]
    if not strands or width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return Text("too small for a chart" if strands else "no points yet", style="dim")
    plt = _begin(width, height)
    _scale(plt, [line for strand in strands for line in (strand.line, strand.evals)], look, width, height)
    for strand in strands:
        _line(plt, strand.line, look, LINE_MARKER, strand.color)
    for strand in strands:
        if strand.evals[0]:
            plt.scatter(strand.evals[0], _ys(strand.evals, look), marker=strand.letter.lower(), color=strand.color)
    # Letters last, over whatever crosses them; each run's stand at places of its own, and one at its end.
    for place, strand in enumerate(strands):
        xs, ys = strand.line[0], _ys(strand.line, look)
        count = max(1, width // (STAMP_EVERY * len(strands))) if xs else 0
        share = [(turn + (place + 1) / (len(strands) + 1)) / count for turn in range(count)]
        found = [min(bisect_left(xs, xs[0] + one * (xs[-1] - xs[0])), len(xs) - 1) for one in share]
        found += [len(xs) - 1] if xs else []
        plt.scatter([xs[i] for i in found], [ys[i] for i in found], marker=strand.letter, color=strand.color)
    return _end(plt)


def _begin(width: int, height: int) -> Any:
    """Return plotext with a cleared figure of a size."""
    import plotext as plt

    plt.clear_figure()
    plt.limit_size(False, False)
    plt.theme("clear")
    plt.plot_size(width, height)
    plt.xaxes(True, False)
    plt.yaxes(True, False)
    return plt


def _end(plt: Any) -> Text:
    """Return the figure as text, and clear it."""
    drawn = Text.from_ansi(plt.build().rstrip("\n"), no_wrap=True, end="")
    plt.clear_figure()
    return drawn


def _line(plt: Any, line: Line, look: Look, marker: str, color: int) -> None:
    if line[0]:
        plt.plot(line[0], _ys(line, look), marker=marker, color=color)


def _ys(line: Line, look: Look) -> list[float]:
    return [math.log10(y) for y in line[1]] if look.log_y else line[1]


def _scale(plt: Any, lines: Sequence[Line], look: Look, width: int, height: int) -> float:
    """Set limits and ticks of both axes; return the upper end of the y axis."""
    xs = [x for line in lines for x in line[0]]
    ys = [y for line in lines for y in _ys(line, look)]
    low, high = min(xs), max(*xs, min(xs) + 1)
    plt.xlim(low, high)
    ticks = _ticks(low, high, max(2, width // 14), least=1)
    plt.xticks(ticks, [_x_label(tick, look.axis) for tick in ticks])
    low, high = _span(min(ys), max(ys))
    plt.ylim(low, high)
    ticks = (_log_ticks if look.log_y else _ticks)(low, high, max(3, height // 4))
    plt.yticks(ticks, [_y_label(10**tick if look.log_y else tick) for tick in ticks])
    return high


def _span(low: float, high: float) -> tuple[float, float]:
    """Return limits that are never the same number: plotext divides by their distance."""
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    pad = abs(low) * 0.1 or 1.0
    return low - pad, high + pad


def _ticks(low: float, high: float, wanted: int, least: float = 0.0) -> list[float]:
    """Return round numbers between `low` and `high`, about `wanted` of them, at least `least` apart."""
    rough = max((high - low) / wanted, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)] or [low, high]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Return the logarithms of round numbers between 10^low and 10^high."""
    if high - low < 1:
        return [math.log10(tick) for tick in _ticks(10**low, 10**high, wanted) if tick > 0]
    factors = (1, 2, 5) if high - low <= wanted / 3 else (1,)
    ticks = [power + math.log10(m) for power in range(math.floor(low), math.ceil(high) + 1) for m in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _y_label(value: float) -> str:
    return fmt.number(value, 3) if not value or abs(value) >= 0.1 else f"{value:.2g}"


def _x_label(value: float, axis: str) -> str:
    return fmt.duration(value) if axis == "time" else fmt.count(value)
