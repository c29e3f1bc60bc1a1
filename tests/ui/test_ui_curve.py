"""From points to what is drawn: decimation, smoothing, axes, and the drawing itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.service import Checkpoint, Event, Point
from fusion_tui.widgets.curve import LIMIT, MARKS, Look, decimate, smooth, trace
from fusion_tui.widgets.plot import SIGNS, draw
from tests.ui.driving import curve

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@given(ys=st.lists(NUMBERS, min_size=1, max_size=3000), limit=st.integers(4, 250))
def test_decimation_keeps_spikes_ends_and_order(ys: list[float], limit: int) -> None:
    xs = [float(x) for x in range(len(ys))]
    kept_x, kept_y = decimate(xs, ys, limit)
    assert len(kept_x) == len(kept_y) <= limit or len(ys) <= limit
    assert kept_x == sorted(set(kept_x))
    assert all(ys[int(x)] == y for x, y in zip(kept_x, kept_y, strict=True))
    assert (max(kept_y), min(kept_y)) == (max(ys), min(ys))
    assert (kept_y[0], kept_y[-1]) == (ys[0], ys[-1])


@given(y=NUMBERS, weight=st.floats(0, 0.999), count=st.integers(1, 50))
def test_smoothing_a_constant_gives_the_constant(y: float, weight: float, count: int) -> None:
    assert smooth([y] * count, weight) == pytest.approx([y] * count)


@given(ys=st.lists(NUMBERS, min_size=1, max_size=50), weight=st.floats(0, 0.999))
def test_a_smoothed_value_lies_between_those_before_it(ys: list[float], weight: float) -> None:
    for index, value in enumerate(smooth(ys, weight)):
        seen = ys[: index + 1]
        assert min(seen) - 1e-3 <= value <= max(seen) + 1e-3


def test_smoothing_is_corrected_for_its_cold_start() -> None:
    # Adam's first step: (1 - β) x / (1 - β) = x; its second: (β x1 + x2) / (1 + β).
    assert smooth([1.0, 4.0], 0.9) == pytest.approx([1.0, (0.9 * 1.0 + 4.0) / 1.9])


def test_what_cannot_be_drawn_is_left_out() -> None:
    points = [Point(1, "train", 0, loss=math.nan), Point(2, "train", 0, loss=None), Point(3, "train", 0, loss=2.0)]
    assert trace(points, Look()).raw == ([3.0], [2.0])
    assert trace([Point(1, "train", 0, lr=0.0)], Look("lr", log_y=True)).empty


def test_evaluations_stand_where_the_training_had_come_to() -> None:
    points = [Point(0, "eval", 0, loss=5.0), *curve(range(1, 11)), Point(10, "eval", 30, loss=3.0)]
    assert trace(points, Look(axis="tokens")).evals == ([0.0, 10240.0], [5.0, 3.0])
    assert trace(points, Look(axis="step")).evals[0] == [0.0, 10.0]
    assert trace(points, Look(metric="lr")).evals == ([], [])


def event(kind: str, step: int) -> Event:
    return Event(1, 0.0, kind, {"step": step})


def saved(step: int, state: str = "published") -> Checkpoint:
    return Checkpoint(str(step), "j", step, 0.0, None, None, None, "/", 1, state, 0.0)


def test_marks_stand_at_published_checkpoints_and_at_what_happened() -> None:
    happened = [event("early_stop", 10), event("spike", 7), event("spike", 7), event("resume", 5), event("hold", 3)]
    shown = trace(curve(range(1, 11)), Look(), happened, [saved(4, "removed"), saved(8)])
    assert shown.marks == (("checkpoint", 8.0), ("resume", 5.0), ("spike", 7.0), ("early_stop", 10.0))


@pytest.mark.parametrize(("axis", "x"), [("step", 10.0), ("tokens", 10_240.0), ("time", 18.0)])
def test_a_mark_of_a_step_without_a_point_stands_where_the_curve_has_come_to(axis: str, x: float) -> None:
    assert trace(curve(range(1, 11)), Look(axis=axis), [event("oom", 11)]).marks == (("oom", x),)
    assert trace(curve(range(5, 11)), Look(axis=axis), [event("oom", 2)]).marks == ()
    assert trace([], Look(axis=axis), [event("oom", 2)]).marks == ()


def test_marks_are_told_apart_without_colour() -> None:
    happened = [event(kind, 20 * place) for place, kind in enumerate(MARKS[1:], start=1)]
    shown = trace(curve(range(1, 121)), Look(), happened, [saved(10)])
    top = draw(shown, Look(), 100, 16).plain.split("\n")[0]
    assert [sign for sign in top if sign in {sign for sign, _ in SIGNS.values()}] == [SIGNS[kind][0] for kind in MARKS]
    assert len({sign for sign, _ in SIGNS.values()}) == len(MARKS)


@given(
    ys=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=60),
    width=st.integers(0, 170),
    height=st.integers(0, 45),
    log_y=st.booleans(),
    axis=st.sampled_from(["step", "tokens", "time"]),
    marks=st.lists(st.tuples(st.sampled_from(MARKS[1:]), st.integers(0, 80)), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_any_values_are_drawn_into_any_box(  # noqa: PLR0917  (hypothesis names them)
    ys: list[float], width: int, height: int, log_y: bool, axis: str, marks: list[tuple[str, int]]
) -> None:
    points = [Point(step, "train", float(step), loss=y, tokens=step * 7) for step, y in enumerate(ys)]
    look = Look(axis=axis, log_y=log_y)
    shown = trace(points, look, [event(kind, step) for kind, step in marks])
    lines = draw(shown, look, width, height).plain.split("\n")
    assert len(lines) <= max(height, 1)
    assert all(len(line) <= max(width, len("too small for a chart")) for line in lines)


def test_lines_are_told_apart_without_colour() -> None:
    points = [Point(0, "eval", 0, loss=6.0), *curve(range(1, 200)), Point(150, "eval", 300, loss=2.0)]
    text = draw(trace(points, Look()), Look(), 78, 16).plain
    assert "◆" in text
    assert "·" in text
    assert any("\u2800" < sign <= "\u28ff" for sign in text)


def test_a_long_run_is_drawn_from_few_points_with_its_spike() -> None:
    points = curve(range(1, 20_001))
    points[12_345] = Point(12_346, "train", 0.0, loss=99.0)
    shown = trace(points, Look())
    assert len(shown.raw[0]) <= LIMIT
    assert max(shown.raw[1]) == 99.0
