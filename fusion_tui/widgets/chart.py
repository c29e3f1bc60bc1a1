"""A chart as large as its box, drawn again when what it shows has changed.

The rule: it draws at most four times a second, and only when its data, its look or its size changed.
"""

from __future__ import annotations

import time
from abc import abstractmethod

from rich.text import Text
from textual import events
from textual.timer import Timer
from textual.widgets import Static

from fusion_tui.export import Sheet
from fusion_tui.widgets.curve import Look

DRAW_EVERY_S = 0.25


class Chart(Static):
    """What all charts have in common; `drawn` counts how often this one was drawn."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.look = Look()
        self.drawn = 0
        self._done: tuple[object, ...] = ()
        self._drawn_at = float("-inf")
        self._timer: Timer | None = None

    @abstractmethod
    def picture(self, width: int, height: int) -> Text:
        """Return the chart in a box of so many cells; only on the UI thread, for plotext has one figure."""

    @abstractmethod
    def sheet(self) -> Sheet | None:
        """Return the numbers behind the chart; None where there are none."""

    @abstractmethod
    def data(self) -> tuple[object, ...]:
        """Return what the picture depends on, beside look and size."""

    @property
    def is_current(self) -> bool:
        """Whether all that is known is drawn: redraws wait for one another."""
        return self._timer is None and self._state() == self._done

    def set_look(self, look: Look) -> None:
        """Draw in another way."""
        self.look = look
        self.request()

    def on_resize(self, _: events.Resize) -> None:
        """The box changed, or came into sight."""
        self.request()

    def request(self) -> None:
        """Draw now, or as soon as a quarter of a second has passed since the last time."""
        if self._timer is not None or self._state() == self._done:
            return
        wait = self._drawn_at + DRAW_EVERY_S - time.monotonic()
        if wait <= 0:
            self._draw()
        else:
            self._timer = self.set_timer(wait, self._draw)

    def _state(self) -> tuple[object, ...]:
        return (*self.data(), self.look, self.size)

    def _draw(self) -> None:
        self._timer = None
        width, height = self.size
        if not self.is_attached or not width or not height:
            return
        self._done = self._state()
        self._drawn_at = time.monotonic()
        self.drawn += 1
        self.update(self.picture(width, height), layout=False)
