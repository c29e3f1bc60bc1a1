"""Datasets: the list, and one as a model will see it, from the real trainer's process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Select

from engine.service import Service
from fusion_tui.screens.datasets import DatasetsScreen
from fusion_tui.screens.inspect import InspectScreen
from fusion_tui.screens.runs import RunsScreen
from fusion_tui.widgets.datasets_table import DatasetsTable
from tests import tiny
from tests.ui.driving import LARGE, SMALL, open_app, screen_text, sees, until

SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "160x45"])


@pytest.fixture
def stocked(service: Service, tiny_model: Path, tmp_path: Path) -> Service:
    """A service with a real model and a real dataset besides."""
    service.add_model(str(tiny_model), "tiny")
    service.add_dataset(str(tiny.make_rows(tmp_path / "sums.jsonl")), "sums")
    return service


def clear(service: Service) -> None:
    for dataset in service.datasets():
        service.remove_dataset(dataset.id)


@SIZES
async def test_the_list_shows_rows_format_size_and_age(stocked: Service, size: tuple[int, int]) -> None:
    app = open_app(stocked)
    async with app.run_test(notifications=True, size=size) as pilot:
        await sees(pilot, "No runs yet")
        await pilot.press("2")
        entry = stocked.dataset("sums")
        await sees(pilot, "sums", "messages", "60", "kB", "now", "Enter shows")
        if size == LARGE:
            await sees(pilot, "row p50", str(entry.facts["p50"]), entry.source[:20])
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


async def test_an_empty_list_says_what_to_do(service: Service) -> None:
    clear(service)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("2")
        await sees(pilot, "No datasets yet", "fusion-tui datasets add PATH_OR_HUB_ID --name NAME")


async def test_a_dataset_that_is_added_elsewhere_appears_and_the_cursor_stays(stocked: Service, tmp_path: Path) -> None:
    app = open_app(stocked)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("2")
        table = app.screen.query_one(DatasetsTable)
        await until(pilot, lambda: table.row_count == 3)
        await pilot.press("G")
        chosen = table.selected
        stocked.add_dataset(str(tiny.make_rows(tmp_path / "more.jsonl", 5)), "aaa")
        await until(pilot, lambda: table.row_count == 4)
        assert table.selected == chosen


async def open_sums(pilot: Pilot[Any], service: Service) -> None:
    """Go to the list and open the dataset `sums`."""
    await pilot.press("2")
    table = pilot.app.screen.query_one(DatasetsTable)
    await until(pilot, lambda: table.row_count == 3)
    table.move_cursor(row=[dataset.name for dataset in service.datasets()].index("sums"))
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(pilot.app.screen, InspectScreen))
    await until(pilot, lambda: isinstance(pilot.app.screen.query_one(Select).value, str))


async def test_enter_shows_what_the_model_will_see(stocked: Service) -> None:
    app = open_app(stocked)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await open_sums(pilot, stocked)
        app.screen.query_one(Select).value = stocked.model("tiny").id
        await sees(pilot, "loading the trainer…")
        await until(pilot, lambda: "60 of messages: 57 to train on, 3 held out" in screen_text(app))
        await sees(pilot, "row length in tokens", "█", "bad none")
        await pilot.press("G")
        await sees(pilot, "· <|im_start|>assistant↵", "+ The sum of")
        await pilot.resize_terminal(*LARGE)
        await pilot.press("g")
        await sees(pilot, "57 to train on", "row length in tokens", "first batch", "── line", "+ The sum of")
        app.screen.query_one(Input).value = "32"
        app.screen.query_one(Input).focus()
        await pilot.press("enter")
        await until(pilot, lambda: "longer than seq_len 32" in screen_text(app))
        await sees(pilot, "✂ cut", "would keep all", "cut at seq_len")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DatasetsScreen))


async def test_the_starter_model_is_chosen_and_what_is_wrong_is_said(stocked: Service) -> None:
    app = open_app(stocked)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await open_sums(pilot, stocked)
        select = app.screen.query_one(Select)
        assert stocked.model(str(select.value)).name == "starter"
        select.value = "model-1"  # its files are nowhere
        await sees(pilot, "✗ The files of the model starter are gone from /nowhere. Add it again.")


async def test_leaving_ends_the_trainers_process(stocked: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    inspect = stocked.inspect_dataset

    def watched(*arguments: object, **asked: object) -> object:
        try:
            return inspect(*arguments, **asked)  # type: ignore[arg-type]
        except Exception as error:
            ended.append(str(error))
            raise

    monkeypatch.setattr(stocked, "inspect_dataset", watched)
    app = open_app(stocked)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await open_sums(pilot, stocked)
        await sees(pilot, "loading the trainer…")
        await pilot.press("escape")
        await until(pilot, lambda: ended)
        assert "it was stopped" in ended[0]
