"""The list of datasets: what each version holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.resources import size_text
from engine.service import Dataset
from fusion_tui import format as fmt
from fusion_tui.widgets.catalogue_table import CatalogueTable, Cells

COLUMNS = (
    ("name", 16, False, 0),
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


class DatasetsTable(CatalogueTable):
    """Datasets as rows; the row's key is the dataset's id. Lengths of rows are in characters."""

    COLUMNS = COLUMNS

    _datasets: Sequence[Dataset] = ()

    def show(self, datasets: Sequence[Dataset]) -> None:
        """Show these datasets."""
        self._datasets = datasets
        self.fill()

    def rows_shown(self, now: float) -> Iterable[tuple[str, Cells]]:
        """Return one row for each dataset."""
        return ((dataset.id, _cells(dataset, now)) for dataset in self._datasets)
