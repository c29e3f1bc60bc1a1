"""A question with two answers, of which No is the default."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from fusion_tui.actions import bindings


class Confirm(ModalScreen[bool]):
    """Asks; its result is whether the answer was yes."""

    BINDINGS = bindings("confirm")
    AUTO_FOCUS = "#no"

    def __init__(self, question: str, detail: str) -> None:
        super().__init__()
        self._question = question
        self._detail = detail

    def compose(self) -> ComposeResult:
        """Question, what it means, the answers."""
        with Vertical(id="box"):
            yield Static(self._question, id="question", markup=False)
            yield Static(self._detail, id="detail", markup=False)
            with Horizontal(id="answers"):
                yield Button("No (n)", id="no", compact=True)
                yield Button("Yes (y)", id="yes", variant="error", compact=True)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        """Answer by key."""
        self.dismiss(yes)
