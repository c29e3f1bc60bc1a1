"""One line of a form: label, field, and beside it the hint or what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Select, Static

from fusion_tui import format as fmt


class FieldRow(Horizontal):
    """A field named `name`: a choice where `options` are given, else free text."""

    class Changed(Message):
        """The field's value changed."""

    def __init__(
        self, label: str, *, value: str = "", hint: str = "", options: Sequence[tuple[str, str]] | None = None
    ) -> None:
        super().__init__(id=f"field-{label}")
        self.label = label
        self._value = value
        self._hint = hint
        self._options = options

    def compose(self) -> ComposeResult:
        """Label, field, note."""
        yield Static(self.label, classes="label", markup=False)
        if self._options is None:
            yield Input(self._value, placeholder=self._value or "automatic", compact=True)
        else:
            yield Select[str](self._options, value=self._value or Select.NULL, prompt="choose", compact=True)
        yield Static(Text(self._hint), classes="note")

    @property
    def value(self) -> str:
        """What the field holds now; empty for nothing."""
        if self._options is None:
            return self.query_one(Input).value
        chosen = self.query_one(Select).value
        return chosen if isinstance(chosen, str) else ""

    def offer(self, options: Sequence[tuple[str, str]], value: str) -> None:
        """Replace the choices, with `value` chosen."""
        select: Select[str] = self.query_one(Select)
        select.set_options(options)
        if value:
            select.value = value

    def show_fault(self, message: str) -> None:
        """Say what is wrong, or with no message show the hint again."""
        self.set_class(bool(message), "-fault")
        self.query_one(".note", Static).update(Text(f"✗ {fmt.clean(message)}" if message else self._hint))

    @on(Input.Changed)
    @on(Select.Changed)
    def _tell(self, event: Message) -> None:
        event.stop()
        self.post_message(self.Changed())
