"""What the screens of a catalogue have in common: they look now and then, in a thread, and show what changed.

The rule: one look at a time. A locked store would gather threads that nobody can end.
"""

from __future__ import annotations

from typing import Any

from textual import on, work
from textual.message import Message
from textual.widgets import Static

from fusion_tui import format as fmt
from fusion_tui.screens.job_screen import FusionScreen

LOOK_EVERY_S = 2.0  # runs and the command line add to the catalogue too


class CatalogueScreen(FusionScreen):
    """A list that is read now and then; `#fault` says why it could not be, `-empty` that there is nothing."""

    class Loaded(Message):
        """The catalogue was read; `error` says why it could not be."""

        def __init__(self, entries: tuple[Any, ...], error: str = "") -> None:
            super().__init__()
            self.entries = entries
            self.error = error

    def __init__(self) -> None:
        super().__init__()
        self.entries: tuple[Any, ...] | None = None
        self._looking = False

    def read(self) -> tuple[Any, ...]:
        """Return what there is. In a thread; what it raises is shown."""
        raise NotImplementedError

    def show(self) -> None:
        """Show `entries`, which have changed."""
        raise NotImplementedError

    def on_mount(self) -> None:
        """Look now, and from now on."""
        self.look()
        self.set_interval(LOOK_EVERY_S, self.look)

    def look(self) -> None:
        """Look again, unless a look still waits."""
        if not self._looking:
            self._looking = True
            self._read()

    @work(thread=True, group="look", exit_on_error=False)
    def _read(self) -> None:
        try:
            self.post_message(self.Loaded(self.read()))
        except Exception as error:  # noqa: BLE001  (a thread's edge: a silent one would never look again)
            self.post_message(self.Loaded((), fmt.failure(error)))

    @on(Loaded)
    def _loaded(self, message: Loaded) -> None:
        self._looking = False
        fault = self.query_one("#fault", Static)
        fault.display = bool(message.error)
        fault.update(f"✗ {fmt.clean(message.error)}")
        if not message.error and message.entries != self.entries:
            self.entries = message.entries
            self.set_class(not message.entries, "-empty")
            self.show()
