"""Draws a curve as text with plotext, whose figure is one global that leaks between draws.

The rule: this is the only module that touches plotext; each draw starts from a cleared figure, on the UI thread.
"""

from __future__ import annotations

import math
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


def draw(curve: Curve, look: Look, width: int, height: int) -> Text:
    """Return the chart, `width` × `height` cells. Text that fits stands in where it does not or nothing is there."""
    if curve.empty or width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return Text("no points yet" if curve.empty else "too small for a chart", style="dim")
    import plotext as plt

    plt.clear_figure()
    plt.limit_size(False, False)
    plt.theme("clear")
    plt.plot_size(width, height)
    plt.xaxes(True, False)
    plt.yaxes(True, False)
    top = _scale(plt, curve, look, width, height)
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
    drawn = Text.from_ansi(plt.build().rstrip("\n"), no_wrap=True, end="")
    plt.clear_figure()
    return drawn


def _line(plt: Any, line: Line, look: Look, marker: str, color: int) -> None:
    if line[0]:
        plt.plot(line[0], _ys(line, look), marker=marker, color=color)


def _ys(line: Line, look: Look) -> list[float]:
    return [math.log10(y) for y in line[1]] if look.log_y else line[1]


def _scale(plt: Any, curve: Curve, look: Look, width: int, height: int) -> float:
    """Set limits and ticks of both axes; return the upper end of the y axis."""
    xs = [x for line in curve.lines for x in line[0]]
    ys = [y for line in curve.lines for y in _ys(line, look)]
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
