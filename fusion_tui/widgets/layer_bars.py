"""Draws a bar for each layer of a model, with signs below the layers that change.

The rule: bars stand on zero, and what is known is never invisible: its bar is an eighth of a cell at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from fusion_tui import format as fmt
from fusion_tui.widgets.plot import EVAL, SMOOTHED
from fusion_tui.widgets.shaping import Layers

LABEL = 10  # cells of the y axis with its labels
WIDEST = 6  # cells of a bar with the gap behind it
LEAST_WIDTH, LEAST_HEIGHT = LABEL + 8, 5
EIGHTHS = " ▁▂▃▄▅▆▇█"


def draw_layers(layers: Layers, width: int, height: int) -> Text:
    """Return the bars, `width` × `height` cells, with an axis of layer numbers and a row of signs below."""
    if width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return Text("too small for a chart", style="dim")
    room = width - LABEL
    together = -(-len(layers.values) // room)  # layers that share a bar, where there are more than cells
    values = [_highest(layers.values[at : at + together]) for at in range(0, len(layers.values), together)]
    signs = {layer // together: sign for layer, sign in layers.signs.items()}
    cell = min(WIDEST, room // max(len(values), 1))
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    rows = height - 1 - bool(signs)
    highest = fmt.number(top) if len(fmt.number(top)) <= LABEL - 2 else f"{top:.0e}"
    colors = [EVAL if place in signs else SMOOTHED for place in range(len(values))]
    lines = []
    for row in reversed(range(rows)):
        label = {rows - 1: highest, 0: "0"}.get(row, "")
        line = Text(f"{label:>{LABEL - 2}}{'┤' if label else '│'} ", style="dim")
        for value, color in zip(values, colors, strict=True):
            filled = 0 if value is None else max(1, math.ceil(8 * rows * max(value, 0.0) / top))
            bar = EIGHTHS[min(max(filled - 8 * row, 0), 8)] * max(cell - 1, 1)
            line.append(bar.ljust(cell), style=f"not dim color({color})")
        lines.append(line)
    lines.append(Text(" " * LABEL + _numbers(len(values), together, cell), style="dim"))
    if signs:
        below = "".join(signs.get(place, " ").ljust(cell) for place in range(len(values)))
        lines.append(Text(" " * LABEL + below.rstrip(), style=f"color({EVAL})"))
    return Text("\n", no_wrap=True).join(lines)


def _highest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _numbers(count: int, together: int, cell: int) -> str:
    """Return the layer numbers below the bars, as many as stand apart."""
    digits = len(str((count - 1) * together)) + 1
    step = next((one for one in (1, 2, 5, 10, 20, 50, 100) if one * cell >= digits), count)
    line = ""
    for place in range(0, count, step):
        line = line.ljust(place * cell) + str(place * together)
    return line
