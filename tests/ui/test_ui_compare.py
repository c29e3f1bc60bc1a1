"""Marking runs, and Compare: curves over one another, what differs, what happens to them meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.service import Job, Point, Service
from fusion_tui.poller import COMPARED_POINTS
from fusion_tui.screens.runs import RunsScreen
from fusion_tui.widgets.config_diff import ConfigDiff, differing
from fusion_tui.widgets.curve import AXES, ZOOMS, Look, begin_of, trace
from fusion_tui.widgets.overlay_chart import OverlayChart
from fusion_tui.widgets.plot import LETTERS, Strand, draw_overlay
from fusion_tui.widgets.runs_table import RunsTable
from store import telemetry
from tests.ui.driving import LARGE, SMALL, Runs, curve, open_app, screen_text, sees, until

SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "160x45"])


def pair(runs: Runs) -> tuple[Job, Job]:
    """Return two runs of other settings and other curves, the newer one last."""
    first = runs.work(runs.queue("slow", lr=1e-4, steps=400))
    runs.report(first, [*curve(range(1, 41), height=8.0), Point(40, "eval", 1100.0, loss=4.5)])
    second = runs.work(runs.queue("quick", lr=3e-4, steps=200))
    runs.report(second, [*curve(range(1, 21)), Point(20, "eval", 1100.0, loss=3.25)])
    return first, second


async def test_a_mark_is_a_letter_that_stays_with_its_run(service: Service, runs: Runs) -> None:
    for name in ("first", "second", "third"):
        runs.queue(name)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        table = app.screen.query_one(RunsTable)
        await until(pilot, lambda: table.row_count == 3)
        await pilot.press("space", "j", "space")
        await sees(pilot, "[A] third", "[B] second")
        runs.queue("newest")
        await sees(pilot, "newest", "[A] third", "[B] second")
        await pilot.press("slash", *"first", "enter")
        await until(pilot, lambda: table.row_count == 1)
        await pilot.press("space")
        await sees(pilot, "[C] first")
        await pilot.press("escape")
        await sees(pilot, "[A] third", "[B] second", "[C] first")
        await pilot.press("k", "space")  # from the first run, which keeps the cursor, to the one above
        await until(pilot, lambda: "[B]" not in screen_text(app))
        await sees(pilot, "[A] third", "[C] first")
        await pilot.press("k", "k", "space")
        await sees(pilot, "[B] newest")  # the letter that is free


async def test_a_deleted_run_takes_its_mark_along(service: Service, runs: Runs) -> None:
    jobs = [runs.queue(name) for name in ("first", "second")]
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        table = app.screen.query_one(RunsTable)
        await until(pilot, lambda: table.row_count == 2)
        await pilot.press("space", "j", "space")
        assert set(table.marks) == {job.id for job in jobs}
        service.cancel(jobs[1].id)
        service.delete(jobs[1].id)
        await until(pilot, lambda: table.row_count == 1)
        assert table.marks == {jobs[0].id: 1}


async def test_fewer_than_two_marks_say_what_to_do_and_a_ninth_is_refused(service: Service, runs: Runs) -> None:
    for number in range(9):
        runs.queue(f"run-{number}")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        table = app.screen.query_one(RunsTable)
        await until(pilot, lambda: table.row_count == 9)
        await pilot.press("c")
        await sees(pilot, "Mark two to eight runs with Space first; marked: 0.")
        await pilot.press("space", "c")
        await sees(pilot, "marked: 1.")
        for _ in range(8):
            await pilot.press("j", "space")
        await sees(pilot, "Eight runs are marked")
        assert sorted(table.marks.values()) == list(range(8))
        assert isinstance(app.screen, RunsScreen)
        await pilot.press("c")
        await sees(pilot, "Compare 8 runs", *(f"{letter} run-{8 - place}" for place, letter in enumerate(LETTERS)))


@SIZES
async def test_marked_runs_are_compared(service: Service, runs: Runs, size: tuple[int, int]) -> None:
    first, _ = pair(runs)
    with service.store.write() as db:
        telemetry.set_result(db, first.id, {"ppl_baseline": 446.1, "ppl_final": 12.3}, now=1.0)
    app = open_app(service)
    async with app.run_test(notifications=True, size=size) as pilot:
        await sees(pilot, "slow", "quick")
        await pilot.press("space", "j", "space", "c")
        await sees(pilot, "Compare 2 runs", "loss, smoothed 0.9 · small letters: eval · by step")
        await sees(pilot, "A quick 3.436", "eval 3.250", "B slow 4.208", "eval 4.500")
        await sees(pilot, "● running", "step 20/200 40/400", "loss 3.000 3.667", "446.1 → 12.30", "375")
        lines = [" ".join(line.split()) for line in screen_text(app).split("\n")]
        if size == SMALL:
            await pilot.press("G")  # the table is longer than its box
        await sees(pilot, "lr 0.0003 0.0001", "steps 200 400")
        assert not any(line.startswith(("type", "model", "dataset")) for line in lines)
        chart = app.screen.query_one(OverlayChart)
        assert chart.size.width == size[0] - 2
        drawn = str(chart.content)
        assert all(sign in drawn.split("by step")[1] for sign in "ABab")


async def test_points_that_arrive_move_one_curve_and_the_rest_stays_where_it_is(service: Service, runs: Runs) -> None:
    first, second = pair(runs)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "slow", "quick")
        await pilot.press("space", "j", "space", "c")
        await sees(pilot, "20/200", "40/400")
        table = app.screen.query_one(ConfigDiff)
        await until(pilot, lambda: table.max_scroll_y > 0)
        await pilot.press("G")
        await until(pilot, lambda: table.scroll_y == table.max_scroll_y)
        before = {run.job.id: run.points for run in app.comparison.runs}
        runs.report(second, curve(range(21, 31)))
        await sees(pilot, "A quick 2.9")
        after = {run.job.id: run.points for run in app.comparison.runs}
        assert after[first.id] is before[first.id]
        assert after[second.id][-1].step == 30
        assert table.scroll_y == table.max_scroll_y


async def test_a_run_that_is_deleted_meanwhile_leaves_the_others(service: Service, runs: Runs) -> None:
    first, second = pair(runs)
    runs.move(second, "failed", error="it broke")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "slow", "quick")
        await pilot.press("space", "j", "space", "c")
        await sees(pilot, "Compare 2 runs", "✗ failed")
        service.delete(second.id)
        await sees(pilot, "Compare 1 run · 1 run deleted meanwhile", "B slow")
        runs.move(first, "failed", error="it broke")
        service.delete(first.id)
        await sees(pilot, "Compare 0 runs · 2 runs deleted meanwhile", "no points yet")
        await pilot.press("escape")
        await sees(pilot, "No runs yet")
        await until(pilot, lambda: app.comparison.wanted == ())


async def test_keys_change_the_look_of_all_curves(service: Service, runs: Runs) -> None:
    slow, quick = pair(runs)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_compare({quick.id: 0, slow.id: 1})
        await sees(pilot, "smoothed 0.9 ", "by step")
        await pilot.press("x", "y", "plus", "z")
        await sees(pilot, "smoothed 0.95 ", "by tokens, log y, last 50 %")
        await pilot.press("minus", "minus", "z", "z", "z")
        await sees(pilot, "smoothed 0.8 ", "by tokens, log y")
        await pilot.press("0", "y")
        await sees(pilot, "loss · small letters: eval · by tokens", "A quick 3.000", "B slow 3.667")


async def test_a_long_run_is_read_in_few_points_with_its_spike(service: Service, runs: Runs) -> None:
    first, second = pair(runs)
    points = curve(range(41, 12_000), height=8.0)
    points[7000] = points[7000]._replace(loss=99.0)
    runs.report(first, points)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_compare({first.id: 0, second.id: 1})
        await sees(pilot, "Compare 2 runs", "11999/400")
        long = app.comparison.runs[0].points
        assert len(long) <= COMPARED_POINTS
        assert max(point.loss or 0 for point in long) == 99.0
        assert long[-1].step == 11_999
        assert app.comparison.runs[1].points == tuple(service.points(second.id))


def test_only_settings_that_differ_are_told() -> None:
    found = differing(
        [
            {"lr": 3 * 1e-4, "steps": 400, "lora": {"r": 8, "alpha": 16}, "layers": [1, 2], "note": ""},
            {"lr": 3e-4, "steps": 200, "lora": {"r": 16, "alpha": 16}, "layers": [], "seed": 0, "note": None},
        ]
    )
    assert found == [
        ("steps", ("400", "200")),
        ("lora.r", ("8", "16")),
        ("layers", ("1, 2", "none")),
        ("seed", ("–", "0")),
    ]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("zoom", range(len(ZOOMS)))
def test_zoom_shows_the_end_of_all_curves_along_one_axis(axis: str, zoom: int) -> None:
    long, short = curve(range(1, 101)), curve(range(1, 41))
    look = Look(axis=axis, zoom=zoom, level=0)
    begin = begin_of([long, short], look)
    drawn = [trace(points, look, begin=begin).raw[0] for points in (long, short)]
    shown = [round(100 - ZOOMS[zoom] * 99), max(round(40 - (100 - ZOOMS[zoom] * 99)), 0)]
    assert [len(drawn[0]), len(drawn[1])] == pytest.approx([100 - shown[0] + (zoom == 0), shown[1]], abs=1.01)
    assert trace(long, look).raw == trace(long, look, begin=begin).raw


def test_each_of_eight_curves_bears_its_letter() -> None:
    curves = [trace(curve(range(1, 200), height=4.0 + place), Look()) for place in range(8)]
    strands = [Strand(place, one.smoothed, ([150.0], [2.0 + place])) for place, one in enumerate(curves)]
    text = draw_overlay(strands, Look(), 78, 16).plain
    assert all(letter in text and letter.lower() in text for letter in LETTERS)
    assert len({strand.color for strand in strands}) == 8


@given(
    lines=st.lists(st.lists(st.floats(1e-6, 1e9), max_size=30), max_size=8),
    width=st.integers(0, 170),
    height=st.integers(0, 45),
    log_y=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_curves_are_laid_over_one_another_in_any_box(
    lines: list[list[float]], width: int, height: int, log_y: bool
) -> None:
    strands = [
        Strand(place, ([float(x) for x in range(len(ys))], ys), ([0.0], [1.0]) if place % 2 else ([], []))
        for place, ys in enumerate(lines)
    ]
    drawn = draw_overlay(strands, Look(log_y=log_y), width, height).plain.split("\n")
    assert len(drawn) <= max(height, 1)
    assert all(len(line) <= max(width, len("too small for a chart")) for line in drawn)
