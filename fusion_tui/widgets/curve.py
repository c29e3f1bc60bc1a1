"""From telemetry points to the numbers that a chart draws.

The rule: pure functions; what leaves here is finite, ordered by x, and at most `LIMIT` points, spikes included.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from engine.service import Checkpoint, Event, Point

LIMIT = 200
SMOOTHING = (0.0, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)
DEFAULT_LEVEL = 3
AXES = ("step", "tokens", "time")
ZOOMS = (1.0, 0.5, 0.2, 0.05)  # shares of the x axis that are shown, at its end

METRICS: dict[str, str] = {
    "loss": "loss",
    "lr": "lr",
    "grad_norm": "grad norm",
    "throughput": "tok/s",
    "vram_gb": "memory GB",
}

LAYERS = "layers"  # the chart beside those of metrics: a bar for each layer

# What is marked on a chart, later ones over earlier: saved states, and events with the step that they happened at.
MARKS = ("checkpoint", "cycle", "resume", "oom", "spike", "rollback", "early_stop")

CYCLES_MARKED = 24  # at most; of more cycles, some

Line = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Look:
    """How a curve is to be drawn: which metric, along what, on which scale, how smooth."""

    metric: str = "loss"
    axis: str = "step"
    log_y: bool = False
    level: int = DEFAULT_LEVEL
    zoom: int = 0

    @property
    def smoothing(self) -> float:
        """The weight of the past in the moving average."""
        return SMOOTHING[self.level]

    @property
    def words(self) -> str:
        """Say along what and how it is drawn."""
        near = f", last {100 * ZOOMS[self.zoom]:g} %" if self.zoom else ""
        return f"by {self.axis}{', log y' if self.log_y else ''}{near}"

    def smoother(self, change: int) -> Look:
        """Return this look with more smoothing (1), less (-1), or none (0)."""
        return replace(self, level=min(max(self.level + change, 0), len(SMOOTHING) - 1) if change else 0)

    def next_axis(self) -> Look:
        """Return this look along the next axis, after the last along the first."""
        return replace(self, axis=AXES[(AXES.index(self.axis) + 1) % len(AXES)])

    def nearer(self) -> Look:
        """Return this look at less of the curve's end; after the nearest, at the whole."""
        return replace(self, zoom=(self.zoom + 1) % len(ZOOMS))


@dataclass(frozen=True)
class Curve:
    """What is drawn: raw and smoothed training values, evaluations, and where to draw marks.

    `rival` and `rival_evals` are those of the ungrown model, where it was trained for comparison.
    """

    raw: Line
    smoothed: Line
    evals: Line
    marks: tuple[tuple[str, float], ...] = ()
    last: tuple[float | None, float | None, float | None] = (None, None, None)
    rival: Line = ([], [])
    rival_evals: Line = ([], [])

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(line[0] for line in self.lines)

    @property
    def lines(self) -> tuple[Line, ...]:
        """All that a chart must have room for."""
        return self.raw, self.smoothed, self.evals, self.rival, self.rival_evals


def decimate(xs: Sequence[float], ys: Sequence[float], limit: int = LIMIT) -> Line:
    """Return at most `limit` points in the same order: of each stretch its lowest and its highest.

    The first and last points stay, so that the curve ends where the run is.
    """
    if len(xs) <= limit:
        return list(xs), list(ys)
    last = len(xs) - 1
    buckets = (limit - 2) // 2
    kept = {0, last}
    for bucket in range(buckets):
        stretch = range(1 + bucket * (last - 1) // buckets, 1 + (bucket + 1) * (last - 1) // buckets)
        kept.add(min(stretch, key=ys.__getitem__))
        kept.add(max(stretch, key=ys.__getitem__))
    order = sorted(kept)
    return [xs[i] for i in order], [ys[i] for i in order]


def smooth(ys: Sequence[float], weight: float) -> list[float]:
    """Return the bias-corrected exponential moving average (Kingma and Ba 2015, section 3)."""
    average, correction, out = 0.0, 1.0, []
    for y in ys:
        average = weight * average + (1 - weight) * y
        correction *= weight
        out.append(average / (1 - correction))
    return out


def _x_of(points: Sequence[Point], axis: str) -> Callable[[Point], float | None]:
    if axis == "tokens":
        # An evaluation counts no tokens of its own: it stands where the training had come to.
        reached = {point.step: point.tokens for point in points if point.tokens is not None}
        return lambda point: reached.get(point.step, 0 if point.step == 0 else None)
    if axis == "time":
        start = min((point.ts for point in points), default=0.0)
        return lambda point: point.ts - start
    return lambda point: float(point.step)


def _line(points: Sequence[Point], look: Look, x_of: Callable[[Point], float | None]) -> Line:
    xs, ys = [], []
    for point in points:
        x, y = x_of(point), getattr(point, look.metric)
        if x is not None and y is not None and math.isfinite(y) and (y > 0 or not look.log_y):
            xs.append(float(x))
            ys.append(float(y))
    return xs, ys


def _marks(
    points: Sequence[Point],
    x_of: Callable[[Point], float | None],
    events: Sequence[Event],
    checkpoints: Sequence[Checkpoint],
) -> tuple[tuple[str, float], ...]:
    found = {("checkpoint", one.step) for one in checkpoints if one.state == "published"}
    # What happened to the comparison happened at its steps, not at the run's.
    own = (one for one in events if one.kind in MARKS and "step" in one.payload and "of" not in one.payload)
    found |= {(one.kind, one.payload["step"]) for one in own}
    cycles = sorted(mark for mark in found if mark[0] == "cycle")
    found -= set(cycles) - set(cycles[:: -max(1, -(-len(cycles) // CYCLES_MARKED))])  # the last one stays
    if not found:
        return ()
    placed = [(point.step, x) for point in points if (x := x_of(point)) is not None]
    marks = []
    for kind, step in sorted(found, key=lambda mark: (MARKS.index(mark[0]), mark[1])):
        # A step that was interrupted has no point yet: its mark stands where the curve has come to.
        before = bisect_right(placed, step, key=lambda place: place[0])
        if before:
            marks.append((kind, placed[before - 1][1]))
    return tuple(marks)


def begin_of(curves: Iterable[Sequence[Point]], look: Look) -> float:
    """Return where along its axis a look begins at these curves, so that all of them end within it."""
    if not look.zoom:
        return -math.inf
    placed = [x for points in curves for x in map(_x_of(points, look.axis), points) if x is not None]
    return max(placed) - ZOOMS[look.zoom] * (max(placed) - min(placed)) if placed else -math.inf


def _cut(line: Line, begin: float) -> Line:
    """Return what of a line lies at `begin` or behind it; a clock may have jumped, so the order tells nothing."""
    if begin == -math.inf:
        return line
    kept = [(x, y) for x, y in zip(*line, strict=True) if x >= begin]
    return [x for x, _ in kept], [y for _, y in kept]


def trace(
    points: Sequence[Point],
    look: Look,
    events: Sequence[Event] = (),
    checkpoints: Sequence[Checkpoint] = (),
    aside: Sequence[Point] = (),
    *,
    begin: float | None = None,
    limit: int = LIMIT,
) -> Curve:
    """Return the curve of `points` for a look, and beside it the loss of the comparison that is among `aside`.

    It begins where the look does, or at `begin` where it is to share an axis with others; `limit` is the points of
    each line.
    """
    x_of = _x_of(points, look.axis)
    begin = begin_of([points], look) if begin is None else begin
    train = [point for point in points if point.phase == "train"]
    xs, ys = _line(train, look, x_of)
    smoothed = smooth(ys, look.smoothing) if look.level else []
    judged = [point for point in points if point.phase == "eval"] if look.metric == "loss" else []
    evals = _line(judged, look, x_of)
    rival, rival_evals = (decimate(*_cut(line, begin), limit) for line in _rival(aside, look))
    return Curve(
        raw=decimate(*_cut((xs, ys), begin), limit),
        smoothed=decimate(*_cut((xs, smoothed), begin), limit) if smoothed else ([], []),
        evals=decimate(*_cut(evals, begin), limit),
        marks=tuple(mark for mark in _marks(points, x_of, events, checkpoints) if mark[1] >= begin),
        last=tuple(line[-1] if line else None for line in (ys, smoothed, evals[1])),  # type: ignore[arg-type]
        rival=rival,
        rival_evals=rival_evals,
    )


def _rival(aside: Sequence[Point], look: Look) -> tuple[Line, Line]:
    """Return the loss of the ungrown model, smoothed as the run's own, and its evaluations."""
    if look.metric != "loss":
        return ([], []), ([], [])
    trained = [point for point in aside if point.phase == "ungrown"]
    judged = [point for point in aside if point.phase == "ungrown_eval"]
    x_of = _x_of([*judged, *trained], look.axis)
    xs, ys = _line(trained, look, x_of)
    return (xs, smooth(ys, look.smoothing) if look.level else ys), _line(judged, look, x_of)
