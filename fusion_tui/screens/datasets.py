"""All datasets; Enter shows one as a model will see it."""

from __future__ import annotations

from textual import on, work
from textual.app import ComposeResult
from textual.message import Message
from textual.widgets import DataTable, Footer, Static

from engine.service import Dataset
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.screens.job_screen import FusionScreen
from fusion_tui.widgets.datasets_table import DatasetsTable

EMPTY = """No datasets yet.

Add one in a terminal: fusion-tui datasets add PATH_OR_HUB_ID --name NAME
A file of rows (JSONL, JSON, CSV, TSV, Parquet, text), a folder of these, or a hub name."""

TITLE = "Datasets: Enter shows what a model will see of one"
LOOK_EVERY_S = 2.0


class DatasetsScreen(FusionScreen):
    """The list of datasets."""

    BINDINGS = bindings("datasets")
    AUTO_FOCUS = "DatasetsTable"
    SCOPE = "datasets"

    class Loaded(Message):
        """The catalogue was read; `error` says why it could not be."""

        def __init__(self, datasets: tuple[Dataset, ...], error: str = "") -> None:
            super().__init__()
            self.datasets = datasets
            self.error = error

    def __init__(self) -> None:
        super().__init__()
        self._shown: tuple[Dataset, ...] | None = None
        self._loading = False

    def compose(self) -> ComposeResult:
        """Title and list."""
        yield Static(TITLE, id="title", markup=False)
        yield DatasetsTable(id="datasets")
        yield Static(EMPTY, id="empty", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Read the catalogue, now and then again: the command line adds to it too."""
        self._load()
        self.set_interval(LOOK_EVERY_S, self._load)

    def _load(self) -> None:
        """Look again, unless a look still waits: a locked store would gather threads that nobody can end."""
        if not self._loading:
            self._loading = True
            self._read()

    @work(thread=True, group="load", exit_on_error=False)
    def _read(self) -> None:
        try:
            self.post_message(self.Loaded(tuple(self.service.datasets())))
        except Exception as error:  # noqa: BLE001  (a thread's edge: a silent one would never look again)
            self.post_message(self.Loaded((), fmt.failure(error)))

    @on(Loaded)
    def _show(self, message: Loaded) -> None:
        self._loading = False
        self.query_one("#title", Static).update(f"✗ {fmt.clean(message.error)}" if message.error else TITLE)
        if message.error or message.datasets == self._shown:
            return
        self._shown = message.datasets
        self.set_class(not message.datasets, "-empty")
        self.query_one(DatasetsTable).show(message.datasets)

    @on(DataTable.RowSelected)
    def _row_selected(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Show the selected dataset as a model will see it."""
        from fusion_tui.screens.inspect import InspectScreen

        chosen = self.query_one(DatasetsTable).selected
        dataset = next((one for one in self._shown or () if one.id == chosen), None)
        if dataset:
            self.app.push_screen(InspectScreen(dataset))
