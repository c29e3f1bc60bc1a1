"""All datasets; Enter shows one as a model will see it."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.widgets import DataTable, Footer, Static

from engine.service import Dataset
from fusion_tui.actions import bindings
from fusion_tui.screens.catalogue import CatalogueScreen
from fusion_tui.widgets.datasets_table import DatasetsTable

EMPTY = """No datasets yet.

Add one in a terminal: fusion-tui datasets add PATH_OR_HUB_ID --name NAME
A file of rows (JSONL, JSON, CSV, TSV, Parquet, text), a folder of these, or a hub name."""

TITLE = "Datasets: Enter shows what a model will see of one"


class DatasetsScreen(CatalogueScreen):
    """The list of datasets."""

    BINDINGS = bindings("datasets")
    AUTO_FOCUS = "DatasetsTable"
    SCOPE = "datasets"

    def compose(self) -> ComposeResult:
        """Title and list."""
        yield Static(TITLE, id="title", markup=False)
        yield Static(id="fault", markup=False)
        yield DatasetsTable(id="datasets")
        yield Static(EMPTY, id="empty", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def read(self) -> tuple[Dataset, ...]:
        """Return the datasets."""
        return tuple(self.service.datasets())

    def show(self) -> None:
        """Fill the list."""
        self.query_one(DatasetsTable).show(self.entries or ())

    @on(DataTable.RowSelected)
    def _row_selected(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Show the selected dataset as a model will see it."""
        from fusion_tui.screens.inspect import InspectScreen

        chosen = self.query_one(DatasetsTable).selected
        dataset = next((one for one in self.entries or () if one.id == chosen), None)
        if dataset:
            self.app.push_screen(InspectScreen(dataset))
