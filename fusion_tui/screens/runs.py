"""Home: all runs, and the selected one's live chart."""

from __future__ import annotations

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.widgets import DataTable, Footer, Input, Static

from engine.service import Job
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.messages import Overview, RunView
from fusion_tui.screens.job_screen import JobScreen
from fusion_tui.widgets.loss_chart import LossChart
from fusion_tui.widgets.run_header import trouble_style
from fusion_tui.widgets.runs_table import RunsTable
from fusion_tui.widgets.strip import Strip, Trouble

EMPTY = """No runs yet.

Press n to set up a first one: the model and the data called "starter" are ready to use.
Or leave with q and let the machine show itself: fusion-tui demo"""

AGES_EVERY_S = 15.0


class RunsScreen(JobScreen):
    """The list of runs."""

    BINDINGS = bindings("runs")
    AUTO_FOCUS = "RunsTable"
    SCOPE = "runs"

    def compose(self) -> ComposeResult:
        """Machine, list and chart."""
        yield Strip(id="strip")
        yield Trouble()
        yield Input(placeholder="words that a run must contain; Esc shows all", id="filter", compact=True)
        with Container(id="body"):
            yield RunsTable(id="runs")
            with Vertical(id="side"):
                yield Static(id="selected")
                yield LossChart(id="chart")
        yield Static(EMPTY, id="empty", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Show what the app knows from now on."""
        self.watch(self.app, "overview", self._show_overview)
        self.watch(self.app, "view", self._show_view)
        self.set_interval(AGES_EVERY_S, self.query_one(RunsTable).refresh_rows)

    def current_job(self) -> Job | None:
        """Return the run under the cursor."""
        return self.fusion.overview.job(self.query_one(RunsTable).selected)

    def _show_overview(self, overview: Overview) -> None:
        self.query_one(Strip).show_overview(overview)
        self.query_one(Trouble).show_overview(overview)
        self.query_one(RunsTable).show_overview(overview)
        if overview.jobs and self.focused is None:
            self.query_one(RunsTable).focus()
        self.set_class(overview.loaded and not overview.jobs and not overview.error, "-empty")

    def _show_view(self, view: RunView | None) -> None:
        if not self.is_current or view is None or view.job.id != self.query_one(RunsTable).selected:
            return
        title = Text.assemble(fmt.state(view.job, view.evidence), "  ", (fmt.clean(view.job.name), "bold"))
        if view.after and not view.job.hold:
            title.append(f"  ↳ after {fmt.clean(view.after)}", style="dim")
        if trouble := fmt.trouble(view.job, view.evidence):
            title.append(f"  {trouble}", style=trouble_style(view))
        elif view.job.activity and not view.job.finished:
            title.append(f"  {fmt.clean(view.job.activity)}", style="dim")
        self.query_one("#selected", Static).update(title, layout=False)
        self.query_one(LossChart).show_run(view)

    @on(DataTable.RowHighlighted)
    def _watch_selected(self) -> None:
        if self.is_current:
            self.fusion.watch_run(self.query_one(RunsTable).selected)

    def on_screen_resume(self) -> None:
        """Back from another screen: follow the selected run again."""
        self._watch_selected()
        self._show_view(self.fusion.view)

    @on(DataTable.RowSelected)
    def _row_selected(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Open the selected run."""
        if job_id := self.query_one(RunsTable).selected:
            self.fusion.open_run(job_id)

    def action_mark(self) -> None:
        """Mark the selected run, or take its mark away."""
        if not self.query_one(RunsTable).toggle_mark():
            self.notify("Eight runs are marked, as many as fit: unmark one first.")

    def action_compare(self) -> None:
        """Lay the marked runs over one another."""
        marks = self.query_one(RunsTable).marks
        if len(marks) < 2:
            self.notify(f"Mark two to eight runs with Space first; marked: {len(marks)}.")
            return
        self.fusion.open_compare(marks)

    def action_filter(self) -> None:
        """Begin to filter."""
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_clear(self) -> None:
        """Show all runs again."""
        field = self.query_one("#filter", Input)
        field.value = ""
        field.display = False
        self.query_one(RunsTable).focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self.query_one(RunsTable).set_filter(event.value)

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self.query_one(RunsTable).focus()
