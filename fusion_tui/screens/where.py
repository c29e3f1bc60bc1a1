"""Asks for the folder that files are to be written to."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from fusion_tui.actions import bindings


class Where(ModalScreen[str | None]):
    """A field with a folder; its result is the folder, or None where nothing is to be written."""

    BINDINGS = bindings("where")
    AUTO_FOCUS = "Input"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def compose(self) -> ComposeResult:
        """Question, field, what keys do."""
        with Vertical(id="box"):
            yield Static("Write the chart into which folder?", id="question", markup=False)
            yield Static("Enter writes CSV and SVG under new names, Esc nothing.", id="detail", markup=False)
            yield Input(self._folder, placeholder="the current folder", id="folder", compact=True)

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip() or ".")

    def action_cancel(self) -> None:
        """Write nothing."""
        self.dismiss(None)
