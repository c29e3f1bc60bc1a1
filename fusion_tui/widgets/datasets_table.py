"""The list of datasets, in as many columns as its width takes; the cursor stays on its dataset."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.text import Text
from textual import events
from textual.widgets import DataTable

from engine.resources import size_text
from engine.service import Dataset
from fusion_tui import format as fmt
from fusion_tui.actions import bindings

NAME_LEAST, NAME_MOST = 16, 40
# Title, width in cells, whether it holds numbers, and from which width of the table on it is there.
COLUMNS = (
    ("name", NAME_LEAST, False, 0),
    ("version", 7, True, 0),
    ("format", 17, False, 0),
    ("rows", 10, True, 0),
    ("size", 9, True, 0),
    ("age", 4, True, 0),
    ("row p50", 8, True, 100),
    ("row p99", 8, True, 100),
    ("bad rows", 8, True, 110),
    ("from", 30, False, 140),
)


def _cells(dataset: Dataset, now: float) -> dict[str, str]:
    facts = dataset.facts
    return {
        "name": dataset.name,
        "version": str(dataset.version),
        "format": dataset.format,
        "rows": f"{dataset.rows:,}",
        "size": size_text(dataset.bytes),
        "age": fmt.age(now - dataset.created_at),
        "row p50": fmt.count(facts.get("p50")),
        "row p99": fmt.count(facts.get("p99")),
        "bad rows": fmt.count(facts.get("dropped")),
        "from": dataset.source,
    }


class DatasetsTable(DataTable[Text]):
    """Datasets as rows; the row's key is the dataset's id. Lengths of rows are in characters."""

    BINDINGS = bindings("table")

    def __init__(self, *, id: str | None = None, clock: Callable[[], float] = time.time) -> None:
        super().__init__(id=id, cursor_type="row")
        self._clock = clock
        self._datasets: Sequence[Dataset] = ()

    @property
    def selected(self) -> str | None:
        """The id of the dataset under the cursor."""
        if not self.row_count:
            return None
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value

    def show(self, datasets: Sequence[Dataset]) -> None:
        """Show these datasets."""
        self._datasets = datasets
        self._fill()

    def on_resize(self, event: events.Resize) -> None:
        """Choose the columns anew."""
        self._fill()

    def _fill(self) -> None:
        width = self.size.width
        if not width:
            return
        keep, row, now = self.selected, self.cursor_row, self._clock()
        chosen = [column for column in COLUMNS if column[3] <= width]
        spare = width - 1 - sum(size + 2 for _, size, _, _ in chosen)
        widths = {title: size for title, size, _, _ in chosen}
        widths["name"] = min(NAME_LEAST + max(spare, 0), NAME_MOST)
        with self.app.batch_update():
            self.clear(columns=True)
            for title, _, numeric, _ in chosen:
                self.add_column(title.rjust(widths[title]) if numeric else title, width=widths[title], key=title)
            for dataset in self._datasets:
                cells = _cells(dataset, now)
                texts = [
                    Text(
                        cells[title].rjust(widths[title]) if numeric else fmt.clean(cells[title]),
                        no_wrap=True,
                        overflow="ellipsis",
                    )
                    for title, _, numeric, _ in chosen
                ]
                self.add_row(*texts, key=dataset.id)
            places = {dataset.id: index for index, dataset in enumerate(self._datasets)}
            if places:
                self.move_cursor(row=places.get(keep or "", min(row, len(places) - 1)))
