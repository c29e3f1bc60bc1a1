"""What the app comes back to on the same store, and that a bad memory costs nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.service import Service
from fusion_tui import remembered
from fusion_tui.remembered import Remembered
from fusion_tui.screens.datasets import DatasetsScreen
from fusion_tui.screens.run import RunScreen
from fusion_tui.screens.runs import RunsScreen
from fusion_tui.widgets.loss_chart import LossChart
from fusion_tui.widgets.runs_table import RunsTable
from tests.ui.driving import SMALL, Runs, open_app, screen_text, sees, until


def test_what_was_written_is_read(tmp_path: Path) -> None:
    shown = Remembered("run", "job-1", "job-2", "loss", "tokens", True, 5, "light", "auto")
    assert remembered.write(tmp_path / "app.json", shown)
    assert remembered.read(tmp_path / "app.json") == shown


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 60_000, b'{"screen": 7, "level": "5", "log_y": 1}']
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "app.json").write_bytes(content)
    assert remembered.read(tmp_path / "app.json") == Remembered()


def test_of_a_file_with_faults_the_rest_is_kept_and_text_is_cleaned(tmp_path: Path) -> None:
    (tmp_path / "app.json").write_text(json.dumps({"level": None, "filter": "a\x1b[31mb", "new_in_2031": 1}))
    assert remembered.read(tmp_path / "app.json") == Remembered(filter="ab")


def test_a_file_that_cannot_be_written_or_read_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "app.json").mkdir()
    assert not remembered.write(tmp_path / "app.json", Remembered())
    assert remembered.read(tmp_path / "app.json") == Remembered()
    assert not remembered.write(tmp_path / "no-folder" / "app.json", Remembered())


def test_a_theme_chosen_in_the_app_holds_until_the_setting_is_changed() -> None:
    kept = Remembered(theme="light", theme_setting="dark")
    assert (kept.chosen_theme("dark"), kept.chosen_theme("ansi")) == ("light", "")


async def test_the_open_run_its_chart_the_list_and_the_theme_come_back(service: Service, runs: Runs) -> None:
    chosen = runs.start("one-a")
    runs.queue("other")
    runs.queue("one-b")
    service.settings = replace(service.settings, theme="dark")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "one-a", "other", "one-b")
        await pilot.press("slash", *"one", "enter", "j", "T")
        await until(pilot, lambda: app.query_one(RunsTable).selected == chosen.id)
        theme = app.theme
        await pilot.press("enter")
        await sees(pilot, "step 40/400")
        await pilot.press("x", "y", "plus", "plus")
        await sees(pilot, "by tokens", "log y")
        look = app.screen.query_one(LossChart).look
        await pilot.press("q")

    again = open_app(service)
    async with again.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "step 40/400", "by tokens", "log y")
        assert again.theme == theme == "light"
        assert again.screen.query_one(LossChart).look == look
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(again.screen, RunsScreen))
        await until(pilot, lambda: again.query_one(RunsTable).selected == chosen.id)
        await sees(pilot, "one-a", "one-b")
        assert "other" not in screen_text(again)
        await pilot.press("q")

    third = open_app(service)
    async with third.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "one-a", "one-b")
        await until(pilot, lambda: third.query_one(RunsTable).selected == chosen.id)
        assert isinstance(third.screen, RunsScreen)
        third.open_run(chosen.id)
        await sees(pilot, "by tokens", "log y")  # also of a run that was closed before the app was


async def test_a_place_comes_back_and_what_lay_over_it_does_not(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "No runs yet")
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, DatasetsScreen))
        await pilot.press("question_mark")
        await sees(pilot, "Show every key")
        await pilot.press("q")
    again = open_app(service)
    async with again.run_test(notifications=True, size=SMALL) as pilot:
        await until(pilot, lambda: isinstance(again.screen, DatasetsScreen))
        assert len(again.screen_stack) == 2
        await pilot.press("q")


async def test_a_run_that_is_gone_since_leaves_the_list(service: Service, runs: Runs) -> None:
    runs.queue("still-here")
    remembered.write(service.home.app_state, Remembered(screen="run", run="gone", selected="gone", level=99, axis="z"))
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "still-here")
        await until(pilot, lambda: app.gone == "gone" and isinstance(app.screen, RunsScreen))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))


async def test_a_store_that_may_only_be_looked_at_is_not_written_beside(
    service: Service, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.queue("one")
    monkeypatch.setenv("FUSION_READ_ONLY", "1")
    looking = Service(service.home, config=replace(service.settings))
    try:
        app = open_app(looking)
        async with app.run_test(notifications=True, size=SMALL) as pilot:
            await sees(pilot, "one")
            await pilot.press("T", "q")
    finally:
        looking.close()
    assert not service.home.app_state.exists()
