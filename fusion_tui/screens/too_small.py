"""What stands in place of every screen while the terminal is too small for any.

The rule: nothing acts on what cannot be seen. No key but quitting works here, and the screen below is as it was.
"""

from __future__ import annotations

from typing import Any

from textual import events
from textual.app import App, ComposeResult
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.widgets import Static

from fusion_tui.actions import bindings

# Cells: below them a screen hides a line or column that is needed; see the test that goes through the screens.
LEAST = Size(60, 18)


class TooSmall(ModalScreen[None]):
    """Says what the app needs and what it has; goes by itself when there is room."""

    BINDINGS = bindings("small")
    SCOPE = "small"

    def compose(self) -> ComposeResult:
        """The words, broken wherever the width asks for it."""
        yield Static(id="needs", markup=False)

    def on_mount(self) -> None:
        """Say the sizes."""
        self._say(self.app.size)

    def on_resize(self, event: events.Resize) -> None:
        """Say the new size, or make room."""
        self._say(event.size)

    def on_screen_resume(self) -> None:
        """What lay above is gone: there may be room by now."""
        self._say(self.app.size)

    def _say(self, size: Size) -> None:
        if fits(size) and self.is_current:
            self.dismiss()
            return
        self.query_one("#needs", Static).update(
            f"Too small: {size.width}×{size.height}\nFusion needs {LEAST.width}×{LEAST.height}. "
            f"Enlarge the window or make its letters smaller. Runs keep going; q quits."
        )

    async def action_leave(self) -> None:
        """Close the app."""
        await self.app.action_quit()


def fits(size: Size) -> bool:
    """Say whether the screens have room; a terminal that does not tell its size is believed to be large enough."""
    return not size.width or not size.height or (size.width >= LEAST.width and size.height >= LEAST.height)


def fit(app: App[Any], size: Size) -> None:
    """Cover the screens where `size` is too small for them."""
    if not fits(size) and not any(isinstance(screen, TooSmall) for screen in app.screen_stack):
        app.push_screen(TooSmall())
