"""Marked runs side by side: their losses in one chart, and below it what differs."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import Footer, Static

from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.messages import Comparison, Overview
from fusion_tui.screens.chart_screen import ChartScreen
from fusion_tui.widgets.config_diff import ConfigDiff
from fusion_tui.widgets.overlay_chart import OverlayChart
from fusion_tui.widgets.strip import Trouble


class CompareScreen(ChartScreen):
    """The runs of `places`, which gives the id of each a letter and a colour."""

    BINDINGS = bindings("compare")
    AUTO_FOCUS = "ConfigDiff"
    SCOPE = "compare"

    def __init__(self, places: Mapping[str, int]) -> None:
        super().__init__()
        self._places = dict(sorted(places.items(), key=lambda one: one[1]))

    def compose(self) -> ComposeResult:
        """Title, chart and table."""
        yield Static("reading the runs…", id="title")
        yield Trouble()
        yield OverlayChart(self._places, id="chart")
        yield ConfigDiff(self._places, id="differences")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Follow the runs from now on, and no other in full."""
        self.watch(self.app, "comparison", self._show)
        self.watch(self.app, "overview", self._show_overview)

    def on_screen_resume(self) -> None:
        """Here, or back from another screen: follow these runs."""
        self.fusion.watch_run(None)
        self.fusion.poller.compare(tuple(self._places))

    def on_unmount(self) -> None:
        """Leave them again, also where they are still being read."""
        self.fusion.poller.compare(())

    def chart(self) -> OverlayChart:
        """Return the chart that keys change."""
        return self.query_one(OverlayChart)

    def chart_name(self) -> str:
        """Return what files with the chart are called after: all runs."""
        runs = self.fusion.comparison.runs
        return "-".join(["compare", *(run.job.name for run in runs), "loss"])

    def _show(self, comparison: Comparison) -> None:
        if comparison.wanted != tuple(self._places):
            return
        self.query_one("#title", Static).update(_title(comparison), layout=False)
        self.chart().show_runs(comparison.runs)
        if comparison.runs:
            self.query_one(ConfigDiff).show_runs(comparison.runs, self.fusion.overview)
        self.set_class(not comparison.runs, "-empty")

    def _show_overview(self, overview: Overview) -> None:
        self.query_one(Trouble).show_overview(overview)
        self._show(self.fusion.comparison)


def _title(comparison: Comparison) -> Text:
    title = Text(f"Compare {fmt.plural(len(comparison.runs), 'run')}")
    if comparison.unread:
        have = len(comparison.wanted) - comparison.unread
        return title.append(f" · reading {have + 1} of {len(comparison.wanted)}…", style="dim")
    if comparison.gone:
        title.append(f" · {fmt.plural(len(comparison.gone), 'run')} deleted meanwhile", style="bold red")
    return title.append(" · Esc and Space choose others", style="dim")
