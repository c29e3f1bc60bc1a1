"""The list of models as a tree: each below the one that it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engine.resources import size_text
from fusion_tui import format as fmt
from fusion_tui.widgets.catalogue_table import CatalogueTable, Cells
from fusion_tui.widgets.models_tree import Branch

COUNTING = "…"


class ModelsTable(CatalogueTable):
    """Models as rows; the row's key is the model's id."""

    NAME_MOST = 52
    COLUMNS = (
        ("name", 23, False, 0),
        ("kind", 8, False, 0),
        ("params", 6, True, 0),
        ("size", 9, True, 0),
        ("dtype", 7, False, 0),
        ("from run", 11, False, 0),
        ("version", 7, True, 84),
        ("family", 12, False, 100),
        ("age", 4, True, 110),
    )

    _branches: Sequence[Branch] = ()
    _sizes: Mapping[str, int] = {}

    def show(self, branches: Sequence[Branch], sizes: Mapping[str, int]) -> None:
        """Show these models; `sizes` are bytes by a model's id, of those that were counted."""
        self._branches, self._sizes = branches, dict(sizes)
        self.fill()

    def rows_shown(self, now: float) -> Iterable[tuple[str, Cells]]:
        """Return one row for each model."""
        for branch in self._branches:
            model = branch.model
            yield (
                model.id,
                {
                    "name": f"{branch.lines}{model.name}",
                    "version": str(model.version),
                    "kind": branch.kind,
                    "params": fmt.count(model.params),
                    "size": size_words(self._sizes.get(model.id)),
                    "dtype": model.precision,
                    "family": model.family,
                    "from run": branch.run,
                    "age": fmt.age(now - model.created_at),
                },
            )


def size_words(size: int | None) -> str:
    """Return a size as text; of files that are gone, and of what is still counted, it says that."""
    return COUNTING if size is None else size_text(size) if size else "gone"
