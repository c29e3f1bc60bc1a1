"""A page of text that scrolls by keyboard.

The rule: it is drawn anew only when what it shows changed, so nothing is painted while nothing happens.
"""

from __future__ import annotations

from rich.console import RenderableType
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from fusion_tui.actions import bindings


class Sheet(VerticalScroll):
    """One text, which may be longer than the page."""

    BINDINGS = bindings("page")

    def __init__(self, first: str = "", *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._first = first
        self._of: object = None

    def compose(self) -> ComposeResult:
        """The text."""
        yield Static(self._first, markup=False)

    def show(self, of: object, drawn: RenderableType) -> None:
        """Show `drawn`, unless it was made of what is shown already."""
        if of != self._of:
            self._of = of
            self.query_one(Static).update(drawn)
