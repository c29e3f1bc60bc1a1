"""The chart of runs that are compared: the loss of each as a curve of its own colour that bears its letter.

The rule: a run keeps its letter and its colour whatever the others do, and the legend names every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from engine.service import Job, Point
from fusion_tui import format as fmt
from fusion_tui.export import Sheet, curve_sheet
from fusion_tui.messages import ComparedRun
from fusion_tui.widgets.chart import Chart
from fusion_tui.widgets.curve import LIMIT, Curve, Look, begin_of, trace
from fusion_tui.widgets.plot import LETTERS, STRANDS, Strand, draw_overlay

LEAST_FOR_LEGEND = 8  # lines of the box; below, the curves need them all
POINTS = 640  # of all curves together: eight of 200 took 33 ms to draw, and a key is to be answered within 50
# What the legend tells of a run, until all runs fit into its lines: cells of the name, and whether evaluations too.
ENTRIES = ((24, True), (16, False), (8, False), (4, False))


class OverlayChart(Chart):
    """The losses of several runs; `places` gives each run its letter and its colour."""

    def __init__(self, places: Mapping[str, int], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._places = places
        self._runs: tuple[ComparedRun, ...] = ()
        self._traced: dict[str, tuple[tuple[Point, ...], Look, float, Curve]] = {}

    def show_runs(self, runs: tuple[ComparedRun, ...]) -> None:
        """Show these runs."""
        self._runs = runs
        self.request()

    def data(self) -> tuple[object, ...]:
        """The points of each run, and what it is called."""
        return tuple((run.job.id, run.job.name, run.points) for run in self._runs)

    def sheet(self) -> Sheet | None:
        """The points of all runs, below one another."""
        if not any(run.points for run in self._runs):
            return None
        return curve_sheet([(run.job, run.points) for run in self._runs], self.look)

    def picture(self, width: int, height: int) -> Text:
        """What the lines are, the curves over one another, who is who."""
        begin = begin_of([run.points for run in self._runs], self.look)
        curves = {run.job.id: self._trace(run, begin) for run in self._runs}
        legend = self._legend(curves, width, height // 4) if height >= LEAST_FOR_LEGEND else []
        strands = [
            Strand(self._places[job_id], curve.smoothed if self.look.level else curve.raw, curve.evals)
            for job_id, curve in curves.items()
        ]
        caption = _caption(self.look)
        caption.truncate(width, overflow="ellipsis")
        chart = draw_overlay(strands, self.look, width, height - 1 - len(legend))
        return Text("\n").join([caption, chart, *legend])

    def _trace(self, run: ComparedRun, begin: float) -> Curve:
        """Return a run's curve; that of one that did not move is known."""
        points, look, since, curve = self._traced.get(run.job.id, ((), None, begin, None))
        if curve is None or points is not run.points or (look, since) != (self.look, begin):
            curve = trace(run.points, self.look, begin=begin, limit=min(LIMIT, POINTS // len(self._places)))
            self._traced[run.job.id] = (run.points, self.look, begin, curve)
        return curve

    def _legend(self, curves: Mapping[str, Curve], width: int, most: int) -> list[Text]:
        """Return at most `most` lines that name each run with where its loss stands, in full where there is room."""
        lines: list[Text] = []
        for cells, judged in ENTRIES:
            entries = [
                _entry(run.job, self._places[run.job.id], curves[run.job.id], cells, judged) for run in self._runs
            ]
            lines = _packed(entries, width)
            if len(lines) <= most:
                break
        return lines[:most]


def _caption(look: Look) -> Text:
    smoothed = f", smoothed {look.smoothing:g}" if look.level else ""
    return Text.assemble(f"loss{smoothed} · small letters: eval · ", (look.words, "dim"))


def _entry(job: Job, place: int, curve: Curve, cells: int, judged: bool) -> Text:
    raw, smoothed, evaluated = curve.last
    name = fmt.clean(job.name)
    name = set_cell_size(name, cells - 1).rstrip() + "…" if cell_len(name) > cells else name
    values = fmt.number(raw if smoothed is None else smoothed)
    values += f", eval {fmt.number(evaluated)}" if judged and evaluated is not None else ""
    return Text.assemble((f"{LETTERS[place]} {name}", f"bold color({STRANDS[place]})"), f" {values}")


def _packed(entries: Sequence[Text], width: int) -> list[Text]:
    """Return entries as lines of `width` cells at most."""
    lines: list[Text] = []
    for entry in entries:
        entry.truncate(width, overflow="ellipsis")
        if lines and lines[-1].cell_len + 3 + entry.cell_len <= width:
            lines[-1].append(" · ").append(entry)
        else:
            lines.append(entry)
    return lines
