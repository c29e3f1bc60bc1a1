"""Charts as files: what is in them, where they go, and that none is overwritten."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.widgets import Input

from engine.errors import EngineError
from engine.service import Point, Service
from fusion_tui.export import NAME_BYTES, Sheet, curve_sheet, stem, write
from fusion_tui.screens.chart_screen import ChartScreen
from fusion_tui.screens.run import RunScreen
from fusion_tui.screens.where import Where
from fusion_tui.widgets.curve import Look, smooth
from fusion_tui.widgets.overlay_chart import OverlayChart
from tests.ui.driving import LARGE, SMALL, Runs, curve, open_app, sees, until

NAME = "a--run----co"  # of the files of a run called `a <run> & co`


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of each test, which nothing was written to yet."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ChartScreen, "folder", "")
    return folder


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def words_of(path: Path) -> str:
    """Return the text of an SVG picture."""
    return " ".join("".join(ElementTree.fromstring(path.read_text()).itertext()).split())


async def test_a_run_is_written_as_numbers_and_as_a_picture(service: Service, runs: Runs, here: Path) -> None:
    job = runs.start("a <run> & co")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await sees(pilot, "loss 2.333")
        await pilot.press("w")
        await sees(pilot, "Write the chart into which folder?")
        await pilot.press("enter")
        await sees(pilot, "Written:")
        await pilot.press("C")
        await sees(pilot, "Sent to the clipboard by OSC 52")
        copied = app.clipboard
        await pilot.press("m", "0")
        await sees(pilot, "lr 2.00e-04")
        await pilot.press("w", "enter")
        await until(pilot, (here / f"{NAME}-lr.svg").exists)
        await until(pilot, lambda: len(read(here / f"{NAME}-lr.csv")) == 40)
        assert {(row["lr"], row["smoothed"]) for row in read(here / f"{NAME}-lr.csv")} == {("0.0002", "")}
    numbers, picture = here / f"{NAME}-loss.csv", here / f"{NAME}-loss.svg"
    assert {numbers, picture} < {*here.iterdir()}
    rows = read(numbers)
    assert copied == numbers.read_text()
    trained = [row for row in rows if row["phase"] == "train"]
    points = curve(range(1, 41))
    assert [float(row["loss"]) for row in trained] == [point.loss for point in points]
    assert [float(row["smoothed"]) for row in trained] == pytest.approx(smooth([p.loss or 0 for p in points], 0.9))
    assert rows[0] | {"id": ""} == {
        "run": "a <run> & co", "id": "", "phase": "eval", "step": "0", "tokens": "", "seconds": "0.0", "loss": "5.25",
        "smoothed": "",
    }  # fmt: skip
    words = words_of(picture)
    assert "a <run> & co-loss" in words
    assert "smoothed 0.9: 2.604" in words
    assert "◆ eval 5.250" in words


async def test_compared_runs_are_written_together_into_a_folder_of_choice(
    service: Service, runs: Runs, here: Path
) -> None:
    first, second = runs.start("first"), runs.start("second", steps=20)
    chosen = here / "chosen"
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        app.open_compare({first.id: 0, second.id: 1})
        await sees(pilot, "A first 2.604", "B second")
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, Where))
        await pilot.press("x")  # what is typed first replaces the folder that is offered
        assert app.screen.query_one(Input).value == "x"
        app.screen.query_one(Input).value = str(chosen)
        await pilot.press("enter")
        await sees(pilot, "is no folder.")
        await until(pilot, lambda: app.screen.query(OverlayChart))
        chosen.mkdir()
        await pilot.press("w", "enter")  # the folder that was named last
        await sees(pilot, "Written:")
    rows = read(chosen / "compare-first-second-loss.csv")
    assert [sum(row["run"] == name for row in rows) for name in ("first", "second")] == [41, 21]
    assert {row["id"] for row in rows} == {first.id, second.id}
    assert "A first 2.604" in words_of(chosen / "compare-first-second-loss.svg")


async def test_an_empty_chart_says_so_and_escape_writes_nothing(service: Service, runs: Runs, here: Path) -> None:
    job = runs.work(runs.queue())
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await sees(pilot, "no points yet")
        await pilot.press("w")
        await sees(pilot, "nothing to write yet")
        await pilot.press("C")
        await sees(pilot, "nothing to copy yet")
        runs.report(job, curve([1]))
        await sees(pilot, "smoothed 0.9: 4.8")
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, Where))
        await pilot.press("q", "escape")  # q is a letter here
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        runs.report(job, curve(range(2, 502)))
        await sees(pilot, "loss 1.15")
        await pilot.press("C")
        await sees(pilot, "Not copied: 501 rows are too many.")
        assert app.clipboard == ""
    assert list(here.iterdir()) == []


def sheet(points: list[Point] | None = None) -> Sheet:
    """Return a small table."""
    return Sheet(("step", "loss"), [(1, 2.0)] if points is None else points, 1)


def test_no_file_is_overwritten(here: Path) -> None:
    (here / "a-run.csv").write_text("mine")
    (here / "a-run-2.svg").symlink_to("nowhere")
    assert write(".", "a-run", sheet(), "<svg/>") == (here / "a-run-3.csv", here / "a-run-3.svg")
    assert write(str(here), "a-run", sheet(), "<svg/>")[0].name == "a-run-4.csv"
    assert (here / "a-run.csv").read_text() == "mine"
    assert (here / "a-run-3.csv").read_text() == "step,loss\n1,2.0\n"


def test_of_a_write_that_fails_nothing_is_left(here: Path) -> None:
    def rows() -> object:
        yield 1, 2.0
        raise OSError(28, os.strerror(28))

    with pytest.raises(EngineError, match=r"Nothing was written into .*No space left"):
        write(".", "a-run", Sheet(("step", "loss"), rows(), 2), "<svg/>")  # type: ignore[arg-type]
    assert list(here.iterdir()) == []


@given(name=st.text(max_size=300))
def test_any_name_becomes_that_of_a_file_in_the_folder(name: str) -> None:
    made = stem(name)
    assert made
    assert "/" not in made
    assert "\0" not in made
    assert not made.startswith((".", "-"))
    assert len(made.encode()) <= NAME_BYTES


def test_values_that_are_no_numbers_are_written_as_they_are(service: Service, runs: Runs) -> None:
    job = runs.queue("=2+2")
    points = [Point(1, "train", 0.0, loss=float("nan")), Point(2, "train", 0.5, loss=None), Point(3, "grow", 1.0)]
    rows = [tuple(row) for row in curve_sheet([(job, points)], Look()).rows]
    assert [row[3] for row in rows] == [1, 2]
    assert str(rows[0][6]) == "nan"
    assert rows[1][5:] == (0.5, None, None)
    assert rows[0][0] == "=2+2"
