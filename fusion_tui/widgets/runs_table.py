"""The list of runs, newest first, in as many columns as its width takes.

The rule: the cursor stays on its run whatever arrives, and a cell is touched only when its text changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.text import Text
from textual import events
from textual.widgets import DataTable

from engine.service import Job
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.messages import Overview
from fusion_tui.widgets.plot import LETTERS, STRANDS

NAME_LEAST, NAME_MOST = 16, 44
BAR = 6


@dataclass(frozen=True)
class Column:
    """A column: its title, its width in cells, how important it is (1: always there), and whether it holds numbers."""

    title: str
    width: int
    rank: int
    cell: Callable[[Job, Overview, float], Text | str]
    numeric: bool = False

    def text(self, job: Job, overview: Overview, now: float) -> Text:
        """Return a run's cell. The table does not honour a text's own justification, so numbers are padded."""
        cell = self.cell(job, overview, now)
        return Text(cell.rjust(self.width)) if isinstance(cell, str) else cell

    @property
    def label(self) -> Text:
        """The column's head."""
        return Text(self.title.rjust(self.width) if self.numeric else self.title)


def _loss(job: Job, overview: Overview, _: float) -> str:
    point = overview.latest.get(job.id)
    return fmt.number(point.loss if point else None)


def _speed(job: Job, overview: Overview, _: float) -> str:
    point = overview.latest.get(job.id)
    return fmt.count(point.throughput if point else None)


def _name(text: str) -> Text:
    return Text(fmt.clean(text), no_wrap=True, overflow="ellipsis")


def _title(job: Job, overview: Overview, _: float) -> Text:
    """Return a run's name, and of one in a chain the name of the run before it, in few cells."""
    name = _name(job.name)
    return name.append(f" ↳ {fmt.clean(overview.after(job))}", style="dim") if job.after_id else name


COLUMNS = (
    Column("state", 15, 1, lambda job, seen, _: fmt.state(job, seen.evidence.get(job.id))),
    Column("name", NAME_LEAST, 1, _title),
    Column("type", 8, 5, lambda job, _, __: _name(job.type)),
    Column("model", 10, 3, lambda job, seen, _: _name(seen.name(job.source_model_id or job.base_model_id))),
    Column("dataset", 10, 4, lambda job, seen, _: _name(seen.name(job.dataset_id))),
    Column(
        "progress", BAR + 5, 1, lambda job, _, __: Text(f"{fmt.bar(job.progress, BAR)} {fmt.percent(job.progress):>4}")
    ),
    Column("loss", 6, 1, _loss, numeric=True),
    Column("tok/s", 5, 2, _speed, numeric=True),
    Column("ETA", 6, 1, lambda job, seen, _: fmt.eta(job, seen.evidence.get(job.id)), numeric=True),
    Column("age", 4, 1, lambda job, _, now: fmt.age(now - job.created_at), numeric=True),
)


def columns_for(width: int) -> list[tuple[Column, int]]:
    """Return the columns that fit into `width` cells with their widths; the name takes what is left."""
    chosen = [column for column in COLUMNS if column.rank == 1]
    for column in sorted(COLUMNS, key=lambda column: column.rank):
        if column.rank > 1 and _needed([*chosen, column]) <= width:
            chosen.append(column)
    spare = min(max(width - _needed(chosen), 0), NAME_MOST - NAME_LEAST)
    return [(one, one.width + (spare if one.title == "name" else 0)) for one in COLUMNS if one in chosen]


def _needed(columns: list[Column]) -> int:
    return sum(column.width + 2 for column in columns)


class RunsTable(DataTable[Text]):
    """Runs as rows; the row's key is the run's id."""

    BINDINGS = bindings("table")

    def __init__(self, *, id: str | None = None, clock: Callable[[], float] = time.time) -> None:
        super().__init__(id=id, cursor_type="row")
        self._clock = clock
        self._shown: list[Column] = []
        self._overview = Overview()
        self._filter = ""
        self.marks: dict[str, int] = {}  # runs to compare, each with its place among the letters

    @property
    def selected(self) -> str | None:
        """The id of the run under the cursor."""
        if not self.row_count:
            return None
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value

    def show_overview(self, overview: Overview) -> None:
        """Show these runs."""
        self._overview = overview
        if overview.loaded:
            there = {job.id for job in overview.jobs}
            self.marks = {job_id: place for job_id, place in self.marks.items() if job_id in there}
        self.refresh_rows()

    def toggle_mark(self) -> bool:
        """Mark the selected run, or take its mark away; say whether that could be: there are eight marks.

        A mark stays with its run, also where the filter hides it, and is a letter: that of the run's curve.
        """
        job_id = self.selected
        if job_id is None or self.marks.pop(job_id, None) is not None:
            self.refresh_rows()
            return True
        free = sorted({*range(len(LETTERS))} - {*self.marks.values()})
        if not free:
            return False
        self.marks[job_id] = free[0]
        self.refresh_rows()
        return True

    def set_filter(self, text: str) -> None:
        """Show only runs that contain every word of `text`."""
        self._filter = text
        self.refresh_rows()

    def on_resize(self, event: events.Resize) -> None:
        """Choose the columns anew."""
        # One cell for the scroll bar, so that its coming and going does not change the columns.
        columns = columns_for(event.size.width - 1 if not self.show_vertical_scrollbar else event.size.width)
        if [column for column, _ in columns] != self._shown or self._widths() != [width for _, width in columns]:
            keep = self.selected
            self.clear(columns=True)
            for column, width in columns:
                self.add_column(column.label, width=width, key=column.title)
            self._shown = [column for column, _ in columns]
            self._fill(self._jobs(), keep)

    def _widths(self) -> list[int]:
        return [column.width for column in self.ordered_columns]

    def _jobs(self) -> list[Job]:
        words = self._filter.lower().split()
        return [job for job in self._overview.jobs if all(word in self._text_of(job) for word in words)]

    def _text_of(self, job: Job) -> str:
        used = (job.base_model_id, job.source_model_id, job.dataset_id, *job.more_dataset_ids)
        entries = (self._overview.name(one) for one in used if one)
        state = fmt.state(job, self._overview.evidence.get(job.id)).plain
        return " ".join([job.id, job.name, job.type, state, self._overview.after(job), *job.tags, *entries]).lower()

    def refresh_rows(self) -> None:
        """Bring the rows up to date, ages too."""
        if not self._shown:
            return
        jobs = self._jobs()
        if [job.id for job in jobs] == [row.key.value for row in self.ordered_rows]:
            self._touch(jobs)
        else:
            self._fill(jobs, self.selected)

    def _cells(self, job: Job) -> list[Text]:
        now = self._clock()
        cells = [column.text(job, self._overview, now) for column in self._shown]
        if (place := self.marks.get(job.id)) is None:
            return cells
        mark = Text(f"[{LETTERS[place]}] ", style=f"bold color({STRANDS[place]})", no_wrap=True, overflow="ellipsis")
        return [
            mark + cell if column.title == "name" else cell for column, cell in zip(self._shown, cells, strict=True)
        ]

    def _touch(self, jobs: list[Job]) -> None:
        for job in jobs:
            for column, cell in zip(self._shown, self._cells(job), strict=True):
                if self.get_cell(job.id, column.title) != cell:
                    self.update_cell(job.id, column.title, cell)

    def _fill(self, jobs: list[Job], keep: str | None) -> None:
        row, offset = self.cursor_row, self.scroll_offset
        with self.app.batch_update():
            self.clear()
            for job in jobs:
                self.add_row(*self._cells(job), key=job.id)
            places = {job.id: index for index, job in enumerate(jobs)}
            target = places.get(keep or "", min(row, len(jobs) - 1))
            if jobs:
                self.move_cursor(row=target, scroll=False)
                self.scroll_to(y=offset.y + (target - row), animate=False)
