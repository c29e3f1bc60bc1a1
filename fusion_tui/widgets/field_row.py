"""One line of a form: label, field, and beside it the hint, what is recommended, or what is wrong.

The rule: what the user typed is never replaced; a value that was filled in is, as long as nobody touched it.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Select, Static

from engine.plans.recommend import Value
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
        self._default = value
        self._filled = value
        self._hint = hint
        self._options = options
        self._advice: Value | None = None
        self._fault = ""

    def compose(self) -> ComposeResult:
        """Label, field, note."""
        yield Static(self.label, classes="label", markup=False)
        if self._options is None:
            yield Input(self._default, placeholder=self._default or "automatic", compact=True)
        else:
            yield Select[str](self._options, value=self._default or Select.NULL, prompt="choose", compact=True)
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

    def explain(self, hint: str) -> None:
        """Say what the field is in other words."""
        self._hint = hint
        self._show_note()

    def advise(self, advice: Value | None, text: str = "") -> None:
        """Show what is recommended, and fill it in as `text` where nothing was typed; None: go back to the default."""
        self._advice = advice
        if self.value == self._filled:
            self._fill(text if advice else self._default)
        self._show_note()

    def _fill(self, text: str) -> None:
        self._filled = text
        if self._options is not None:
            self.query_one(Select).value = text or Select.NULL
            return
        field = self.query_one(Input)
        selected = field.has_focus and field.selected_text == field.value
        field.value = text
        if selected:
            field.select_all()  # typing still replaces what stands there

    def show_fault(self, message: str) -> None:
        """Say what is wrong, or with no message show the advice or the hint again."""
        self._fault = message
        self._show_note()

    @property
    def is_outside(self) -> bool:
        """Whether the value lies outside the recommended window."""
        try:
            return self._advice is not None and not self._advice.holds(float(self.value))
        except ValueError:
            return False  # empty, a word, or a fault that is told as such

    def _show_note(self) -> None:
        outside = self.is_outside
        self.set_class(bool(self._fault), "-fault")
        self.set_class(outside and not self._fault, "-outside")
        if self._fault:
            note = f"✗ {fmt.clean(self._fault)}"
        elif self._advice:
            note = f"▲ outside {fmt.window(self._advice)}" if outside else fmt.window(self._advice)
        else:
            note = self._hint
        self.query_one(".note", Static).update(Text(note))

    @on(Input.Changed)
    @on(Select.Changed)
    def _tell(self, event: Message) -> None:
        event.stop()
        self._show_note()
        self.post_message(self.Changed())
