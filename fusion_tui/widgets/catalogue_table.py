"""A list of catalogue entries, in as many columns as its width takes; the cursor stays on its entry.

The rule: an entry's row is known by its id alone, so the list may be filled anew at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, TypeAlias

from rich.text import Text
from textual import events
from textual.widgets import DataTable

from fusion_tui import format as fmt
from fusion_tui.actions import bindings

# Title, width in cells, whether it holds numbers, and from which width of the table on it is there.
Column: TypeAlias = tuple[str, int, bool, int]
Cells: TypeAlias = Mapping[str, str]


class CatalogueTable(DataTable[Text]):
    """Entries as rows. The first column takes the room that the others leave, up to `NAME_MOST` cells."""

    BINDINGS = bindings("table")
    COLUMNS: ClassVar[tuple[Column, ...]] = ()
    NAME_MOST: ClassVar[int] = 40

    def __init__(self, *, id: str | None = None, clock: Callable[[], float] = time.time) -> None:
        super().__init__(id=id, cursor_type="row")
        self._clock = clock

    @property
    def selected(self) -> str | None:
        """The id of the entry under the cursor."""
        if not self.row_count:
            return None
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value

    def rows_shown(self, now: float) -> Iterable[tuple[str, Cells]]:
        """Return the id and the cells, by the title of their column, of each entry."""
        raise NotImplementedError

    def on_resize(self, event: events.Resize) -> None:
        """Choose the columns anew."""
        self.fill()

    def fill(self) -> None:
        """Show the entries as they are now."""
        width = self.size.width
        if not width:
            return
        keep, row = self.selected, self.cursor_row
        chosen = [column for column in self.COLUMNS if column[3] <= width]
        spare = width - 1 - sum(size + 2 for _, size, _, _ in chosen)
        widths = {title: size for title, size, _, _ in chosen}
        first = chosen[0][0]
        widths[first] = min(widths[first] + max(spare, 0), self.NAME_MOST)
        places: dict[str, int] = {}
        with self.app.batch_update():
            self.clear(columns=True)
            for title, _, numeric, _ in chosen:
                self.add_column(title.rjust(widths[title]) if numeric else title, width=widths[title], key=title)
            for entry_id, cells in self.rows_shown(self._clock()):
                places[entry_id] = len(places)
                texts = (_cell(cells[title], widths[title], numeric) for title, _, numeric, _ in chosen)
                self.add_row(*texts, key=entry_id)
            if places:
                self.move_cursor(row=places.get(keep or "", min(row, len(places) - 1)))


def _cell(words: str, width: int, numeric: bool) -> Text:
    return Text(words.rjust(width) if numeric else fmt.clean(words), no_wrap=True, overflow="ellipsis")
