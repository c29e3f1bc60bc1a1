"""The list of runs: what it shows, what keys do, what stays in place."""

from __future__ import annotations

import pytest

from engine.service import Point, Service
from fusion_tui.screens.confirm import Confirm
from fusion_tui.screens.run import RunScreen
from fusion_tui.screens.runs import RunsScreen
from fusion_tui.widgets.loss_chart import LossChart
from fusion_tui.widgets.runs_table import RunsTable, columns_for
from tests.ui.driving import LARGE, SMALL, Runs, curve, open_app, screen_text, sees, until

SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "160x45"])


async def test_an_empty_list_says_what_to_press(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "No runs yet", "Press n", "fusion-tui demo", "no supervisor: press S to start")


@SIZES
async def test_every_run_shows_its_state_in_words(service: Service, runs: Runs, size: tuple[int, int]) -> None:
    runs.start("trains")
    runs.move(runs.queue("breaks"), "failed", error="CUDA out of memory")
    runs.move(runs.queue("waits"), hold="the device is busy")
    app = open_app(service)
    async with app.run_test(notifications=True, size=size) as pilot:
        await sees(pilot, "● running", "✗ failed", "○ queued", "trains", "10%", "6m00s", "2.333", "1 running, 1 queued")
        await sees(pilot, "waits: the device is busy")
        await pilot.press("j")
        await sees(pilot, "CUDA out of memory")


@SIZES
async def test_points_that_arrive_move_the_chart(service: Service, runs: Runs, size: tuple[int, int]) -> None:
    job = runs.start(steps=40)
    app = open_app(service)
    async with app.run_test(notifications=True, size=size) as pilot:
        chart = app.screen.query_one(LossChart)
        await until(pilot, lambda: len(chart.points) == 41)
        await sees(pilot, "loss 2.333", "eval 5.250")
        before = screen_text(app)
        runs.report(job, [*curve(range(41, 121)), Point(120, "eval", 1240.0, loss=1.9)])
        await sees(pilot, "loss 1.571", "eval 1.900")
        assert screen_text(app) != before


async def test_nothing_is_drawn_while_nothing_happens(service: Service, runs: Runs) -> None:
    runs.start()
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        chart = app.screen.query_one(LossChart)
        await sees(pilot, "loss 2.333")
        posted: list[object] = []
        await until(pilot, lambda: app.overview.devices)
        polls, looked = 0, app.poller._service.version

        def counting() -> int:
            nonlocal polls
            polls += 1
            return looked()

        service.version = counting  # type: ignore[method-assign]
        drawn = chart.drawn
        app.poller._post = posted.append
        await until(pilot, lambda: polls > 10)
        assert chart.drawn == drawn
        assert [one for one in posted if type(one).__name__ == "RunChanged"] == []


async def test_the_cursor_stays_on_its_run_when_others_arrive(service: Service, runs: Runs) -> None:
    jobs = [runs.queue(f"run-{n}") for n in range(5)]
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        table = app.screen.query_one(RunsTable)
        await until(pilot, lambda: table.row_count == 5)
        await pilot.press("j", "j")
        assert table.selected == jobs[2].id
        runs.queue("newcomer")
        await until(pilot, lambda: table.row_count == 6)
        assert table.selected == jobs[2].id
        service.cancel(jobs[4].id)
        service.delete(jobs[4].id)
        await until(pilot, lambda: table.row_count == 5)
        assert table.selected == jobs[2].id
        await pilot.resize_terminal(*LARGE)
        await sees(pilot, "dataset")
        assert table.selected == jobs[2].id
        await pilot.press("G")
        assert table.selected == jobs[0].id
        await pilot.press("g")
        assert table.cursor_row == 0


async def test_the_filter_keeps_what_contains_every_word(service: Service, runs: Runs) -> None:
    for name in ("alpha one", "alpha two", "beta one"):
        runs.queue(name)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        table = app.screen.query_one(RunsTable)
        await until(pilot, lambda: table.row_count == 3)
        await pilot.press("slash", *"one al", "q")
        await until(pilot, lambda: table.row_count == 0)
        await pilot.press("backspace", "enter")
        await until(pilot, lambda: table.row_count == 1)
        assert table.has_focus
        await pilot.press("escape")
        await until(pilot, lambda: table.row_count == 3)
        assert isinstance(app.screen, RunsScreen)


async def test_stopping_asks_and_does_nothing_by_default(service: Service, runs: Runs) -> None:
    job = runs.queue()
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "a-run")
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))
        assert service.job(job.id).state == "queued"
        await pilot.press("s", "y")
        await until(pilot, lambda: service.job(job.id).state == "cancelled")
        await sees(pilot, "⊘ cancelled")


async def test_a_running_job_is_asked_to_stop(service: Service, runs: Runs) -> None:
    job = runs.start()
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "● running")
        await pilot.press("s", "tab", "enter")
        await until(pilot, lambda: service.job(job.id).stop_requested)
        await sees(pilot, "stopping")


async def test_retry_queues_again_and_delete_removes(service: Service, runs: Runs) -> None:
    job = runs.move(runs.queue(), "failed", error="it broke")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "✗ failed")
        await pilot.press("r")
        await until(pilot, lambda: service.job(job.id).state == "queued")
        await sees(pilot, "○ queued")
        await pilot.press("D")
        await sees(pilot, "stop it first")
        service.cancel(job.id)
        await sees(pilot, "⊘ cancelled")
        await pilot.press("D", "y")
        await until(pilot, lambda: service.jobs() == [])
        await sees(pilot, "No runs yet")


async def test_a_refusal_of_the_service_is_shown(service: Service, runs: Runs) -> None:
    runs.queue()
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "a-run")
        await pilot.press("r")
        await sees(pilot, "The job a-run is queued")


async def test_enter_opens_the_run_and_escape_comes_back(service: Service, runs: Runs) -> None:
    runs.start("first")
    second = runs.start("second")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "first")
        seen = [type(app.screen).__name__]
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        assert isinstance(app.screen, RunScreen)
        assert app.screen.job_id == second.id
        seen.append(type(app.screen).__name__)
        await pilot.press("question_mark")
        await sees(pilot, "Keys")
        seen.append(type(app.screen).__name__)
        await pilot.press("escape")
        await pilot.press("escape")
        seen.append(type(app.screen).__name__)
        assert seen == ["RunsScreen", "RunScreen", "HelpScreen", "RunsScreen"]
        await pilot.press("j")
        await until(pilot, lambda: app.view and app.view.job.name == "first")


async def test_names_are_shown_as_text_never_as_markup(service: Service, runs: Runs) -> None:
    runs.queue("[red]sly[/red]\x1b[2J")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, "[red]sly[/red]")
        await pilot.press("s")
        await sees(pilot, "Stop [red]sly[/red]?")
        await pilot.press("y")
        await sees(pilot, "[red]sly[/red] is cancelled")
        assert "\x1b" not in screen_text(app)


@pytest.mark.parametrize("width", range(40, 240))
def test_columns_fit_and_the_name_stays_readable(width: int) -> None:
    columns = {column.title: wide for column, wide in columns_for(width)}
    assert {"state", "name", "progress", "loss", "ETA", "age"} <= set(columns)
    assert columns["name"] >= 16
    if width >= 78:
        assert sum(columns.values()) + 2 * len(columns) <= width
