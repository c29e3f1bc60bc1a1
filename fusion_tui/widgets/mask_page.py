"""A page with what a model will see of a dataset: figures, lengths of rows, and the first batch with its mask."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from engine.data.inspection import Inspection
from fusion_tui import format as fmt
from fusion_tui import mask
from fusion_tui.actions import bindings

LINES_SHOWN = 2000  # laid out in about 0.2 s


class MaskPage(VerticalScroll):
    """Shows an inspection, or a line about why there is none yet."""

    BINDINGS = bindings("page")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._found: Inspection | None = None
        self._width = 0

    def compose(self) -> ComposeResult:
        """One text, longer than the page."""
        yield Static()

    def show(self, found: Inspection) -> None:
        """Show an inspection from its beginning."""
        self._found = found
        self._draw()
        self.scroll_home(animate=False)

    def say(self, text: str, style: str = "") -> None:
        """Show one line in place of an inspection."""
        self._found = None
        self.query_one(Static).update(Text(text, style=style))

    def on_resize(self, event: events.Resize) -> None:
        """Lines are as long as the page is wide."""
        if self._found and self._width != self._room:
            self._draw()

    @property
    def _room(self) -> int:
        return max(self.scrollable_content_region.width, 20)

    def _draw(self) -> None:
        self._width = self._room
        lines = list(islice(self._lines(self._width), LINES_SHOWN + 1))
        if len(lines) > LINES_SHOWN:
            lines[-1] = Text("… the rest: fusion-tui datasets inspect NAME --model MODEL", style="dim")
        self.query_one(Static).update(Text("\n").join(lines))

    def _lines(self, width: int) -> Iterator[Text]:
        found = self._found
        if found is None:
            return
        if found.stops:
            yield Text(f"✗ A fine-tune would stop: {fmt.clean(found.stops)}.", style="bold red")
        for name, words in mask.summary(found):
            yield Text.assemble((f"{name:<11}", "dim"), words)
        if found.histogram:
            yield Text("\nrow length in tokens", style="bold")
        yield from mask.histogram(found, min(width, 100))
        if found.batch:
            yield Text(f"\nfirst batch (step 1, seed 0):   {mask.LEGEND}", style="bold")
            yield from mask.batch(found, width)
