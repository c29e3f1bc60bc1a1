"""Import a model: a folder, a GGUF file or a hub name, with what goes on meanwhile.

The rule: a conversion is ended before this closes; its result is the model that was added, or None.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static
from textual.worker import Worker, get_current_worker

from engine.service import BaseModel, Service
from fusion_tui import format as fmt
from fusion_tui.actions import bindings

HINT = (
    "Enter imports, Tab goes to the other field, Esc goes back. A folder is used where it lies; a GGUF file is copied."
)
NAME_MOST = 100
TICK_S = 0.5


class AddModel(ModalScreen[BaseModel | None]):
    """The question where a model is, and what to call it."""

    BINDINGS = bindings("add_model")
    AUTO_FOCUS = "#source"
    SCOPE = "add_model"

    class Told(Message):
        """How far the import is."""

        def __init__(self, what: str, share: float | None) -> None:
            super().__init__()
            self.what = what
            self.share = share

    class Done(Message):
        """The import ended: with a model, or with an error."""

        def __init__(self, model: BaseModel | None, error: str = "") -> None:
            super().__init__()
            self.model = model
            self.error = error

    def __init__(self) -> None:
        super().__init__()
        self._work: Worker[None] | None = None
        self._began = 0.0
        self._what = ""
        self._share: float | None = None
        self._named = ""  # the name that was made from the source; one that the user wrote is left alone

    def compose(self) -> ComposeResult:
        """Two fields, and what goes on."""
        with Vertical(id="box"):
            yield Static("Add a model", id="question", markup=False)
            yield Input(placeholder="a folder, a .gguf file, or owner/name on the hub", id="source", compact=True)
            yield Input(placeholder="its name here", id="name", max_length=NAME_MOST, compact=True)
            yield Static(HINT, id="detail", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Show how long it takes."""
        self.set_interval(TICK_S, self._show_progress)

    @property
    def _service(self) -> Service:
        from fusion_tui.app import FusionApp

        assert isinstance(self.app, FusionApp)
        return self.app.service

    @on(Input.Changed, "#source")
    def _suggest(self, event: Input.Changed) -> None:
        field = self.query_one("#name", Input)
        if field.value in ("", self._named):
            self._named = name_from(event.value)
            field.value = self._named

    @on(Input.Submitted)
    def _submit(self) -> None:
        source, name = (self.query_one(f"#{field}", Input).value.strip() for field in ("source", "name"))
        if self._work is not None:
            return
        if not source or not name:
            self._say("✗ It needs both: where the model is, and a name.", fault=True)
            self.query_one("#name" if source else "#source", Input).focus()
            return
        self._began, self._what, self._share = time.monotonic(), "looking at it", None
        self._work = self._add(source, name)
        self._show_progress()

    @work(thread=True, group="add", exit_on_error=False)
    def _add(self, source: str, name: str) -> None:
        worker = get_current_worker()

        def tell(what: str, share: float | None) -> None:
            self.post_message(self.Told(what, share))

        try:
            added = self._service.add_model(source, name, tell, stopped=lambda: worker.is_cancelled)
        except Exception as error:  # noqa: BLE001  (a thread's edge: the words go to the screen)
            self.post_message(self.Done(None, "" if worker.is_cancelled else fmt.failure(error)))
        else:
            self.post_message(self.Done(added))

    @on(Told)
    def _told(self, message: Told) -> None:
        self._what, self._share = fmt.clean(message.what), message.share
        self._show_progress()

    @on(Done)
    def _done(self, message: Done) -> None:
        stopped = self._work is not None and self._work.is_cancelled
        self._work = None
        if message.model or stopped:
            self.dismiss(message.model)
        else:
            self._say(f"✗ {message.error}", fault=True)

    def action_cancel(self) -> None:
        """Go back; an import that is under way is ended first."""
        if self._work is None or self._work.is_cancelled:
            self.dismiss(None)
        else:
            self._work.cancel()
            self._say("ending it… (A download cannot be: Esc again leaves it behind, and nothing is added.)")

    def _show_progress(self) -> None:
        if self._work is not None and not self._work.is_cancelled:
            share = "" if self._share is None else f" {fmt.percent(self._share)}"
            spent = fmt.duration(time.monotonic() - self._began)
            self._say(f"{self._what}…{share} ({spent}; Esc ends it)")

    def _say(self, words: str, *, fault: bool = False) -> None:
        line = self.query_one("#detail", Static)
        line.set_class(fault, "-fault")
        line.update(words)


def name_from(source: str) -> str:
    """Return a name for what a path or a hub name means; empty where it gives none."""
    path = Path(source.strip().rstrip("/"))
    stem = path.stem if path.suffix.lower() == ".gguf" else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:NAME_MOST]
