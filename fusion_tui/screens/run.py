"""One run: its charts, log, events, configuration, result and checkpoints."""

from __future__ import annotations

from dataclasses import replace

from textual import on
from textual.app import ComposeResult
from textual.widgets import Footer, Static, TabbedContent, TabPane, Tabs

from engine.service import Job
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.messages import RunView
from fusion_tui.screens.chart_screen import ChartScreen
from fusion_tui.screens.job_screen import JobScreen
from fusion_tui.widgets.facts import CheckpointsPage, ConfigPage, EventsPage, Page, ResultPage
from fusion_tui.widgets.log_tail import LogTail
from fusion_tui.widgets.loss_chart import LossChart
from fusion_tui.widgets.metric_tabs import MetricTabs
from fusion_tui.widgets.run_header import RunHeader
from fusion_tui.widgets.strip import Trouble


class RunScreen(ChartScreen, JobScreen):
    """The screen of the run with the id `job_id`."""

    BINDINGS = bindings("run")
    AUTO_FOCUS = "ContentTabs"
    SCOPE = "run"

    def __init__(self, job_id: str) -> None:
        super().__init__()
        self.job_id = job_id
        self._view: RunView | None = None
        self._deleted = False  # by this very screen, which tells of it then

    def compose(self) -> ComposeResult:
        """Header and panes; on a tall screen the log stands below the chart too."""
        yield RunHeader("reading the run…", id="header")
        yield Trouble()
        with TabbedContent(id="panes"):
            with TabPane("Charts", id="charts"):
                yield MetricTabs(id="metrics")
                yield LossChart(id="chart")
                yield Static("log", id="tail-title")
                yield LogTail(id="tail")
            with TabPane("Log", id="log-pane"):
                yield LogTail(id="log")
            with TabPane("Events", id="events-pane"):
                yield EventsPage(id="events")
            with TabPane("Config", id="config-pane"):
                yield ConfigPage(id="config")
            with TabPane("Result", id="result-pane"):
                yield ResultPage(id="result")
            with TabPane("Checkpoints", id="checkpoints-pane"):
                yield CheckpointsPage(id="checkpoints")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Follow the run from now on."""
        self.fusion.watch_run(self.job_id)
        self.watch(self.app, "view", self._show_view)
        self.watch(self.app, "overview", self.query_one(Trouble).show_overview)
        self.watch(self.app, "gone", self._gone, init=False)

    def on_screen_resume(self) -> None:
        """Back from another screen: follow this run again, unless it went meanwhile."""
        self.fusion.watch_run(self.job_id)
        self._gone(self.fusion.gone)

    def current_job(self) -> Job | None:
        """Return this run."""
        return self._view.job if self._view else None

    def _show_view(self, view: RunView | None) -> None:
        if view is None or view.job.id != self.job_id:
            return
        self._view = view
        self.query_one(RunHeader).show_run(view)
        self.query_one(MetricTabs).show_run(view)
        self.query_one(LossChart).show_run(view)
        for log in self.query(LogTail):
            log.show_run(view)
        for page in self.query(Page):
            page.show_run(view)

    def _gone(self, job_id: str) -> None:
        if job_id == self.job_id and self.is_current:
            if self._view and not self._deleted:
                self.notify(f"{fmt.clean(self._view.job.name)} was deleted elsewhere.", markup=False)
            self.fusion.pop_screen()

    def _delete(self, job: Job) -> str:
        self._deleted = True
        return super()._delete(job)

    def on_resize(self) -> None:
        """The header's bar fills the width."""
        if self._view:
            self.query_one(RunHeader).show_run(self._view)

    # The chart's look ---------------------------------------------------------------------------------------------

    def chart(self) -> LossChart:
        """Return the chart that keys change."""
        return self.query_one(LossChart)

    def chart_name(self) -> str:
        """Return what files with the chart are called after."""
        return f"{self._view.job.name if self._view else self.job_id}-{self.chart().look.metric}"

    @on(Tabs.TabActivated, "MetricTabs")
    def _metric_chosen(self, event: Tabs.TabActivated) -> None:
        self.chart().set_look(replace(self.chart().look, metric=event.tab.id or "loss"))

    def action_metric(self) -> None:
        """Show the next metric."""
        self.query_one(TabbedContent).active = "charts"
        self.query_one(MetricTabs).next_metric()

    def action_follow(self) -> None:
        """Follow the log, or stand still."""
        following = [log.toggle_follow() for log in self.query(LogTail)]
        self.notify("The log follows." if all(following) else "The log stands still.", timeout=2)
