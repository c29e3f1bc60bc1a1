"""The app as its terminal meets it: the user's keys, theme and motion, and what is shown where there is no room.

The rule: nothing here knows of runs; what the settings and the terminal ask for is decided in `keymap`, `appearance`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from textual import events, on
from textual.app import App
from textual.binding import Binding
from textual.filter import LineFilter

from engine.settings import Settings, settings_file
from fusion_tui import appearance, keymap
from fusion_tui import format as fmt
from fusion_tui.actions import bindings, key_text
from fusion_tui.poller import INTERVAL_S
from fusion_tui.screens.too_small import fit


class Shell(App[str | None]):
    """An app that looks and listens as `settings` say. Raises EngineError for a key map with a fault."""

    CSS_PATH = "app.tcss"
    BINDINGS = bindings("app")
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]  # noqa: RUF012

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._theme_setting = settings.theme
        self.keymap = keymap.read(settings.keys, str(settings_file()))
        self.motion = appearance.motion_of(settings.motion, os.environ)
        self.news_every = INTERVAL_S  # seconds
        if self.motion == "reduced":
            self.animation_level, self.news_every = "none", appearance.REDUCED_INTERVAL_S
        self.no_color = appearance.without_colour(os.environ)
        for theme in appearance.themes():
            self.register_theme(theme)

    def take_theme(self, chosen: str) -> None:
        """Take the theme to begin with; `chosen` is one that was chosen in the app, or empty."""
        # Without a TERM no terminal is there, but a test or a picture.
        colours = None if os.environ.get("TERM", "") in appearance.DUMB else self.console.color_system
        self.theme = appearance.theme_of(self._theme_setting, chosen, colours, no_color=self.no_color)

    def take_keys(self) -> None:
        """Bind the user's own keys, and say what is doubtful about them; the app must be mounted."""
        self.set_keymap(self.keymap.bindings)
        for action in self.keymap.of_scope("app"):
            # In a field Textual forgets actions whose usual key types a letter, and with them their other keys.
            if action.id in self.keymap.changed:
                self.bind(",".join(action.keys), action.call, show=False)
        for warning in self.keymap.warnings:
            told = partial(self.notify, fmt.clean(warning), severity="warning", timeout=15, markup=False)
            self.call_after_refresh(told)

    def get_key_display(self, binding: Binding) -> str:
        """Return a key as it stands in the footer."""
        return binding.key_display or key_text(binding.key)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Return what changes colours on their way to the terminal."""
        return appearance.filters(super().get_line_filters(), self.theme, no_color=self.no_color)

    def action_theme(self) -> None:
        """Show the next theme."""
        self.theme = appearance.next_theme(self.theme)
        self.notify(f"Theme: {self.theme}", timeout=2)

    @on(events.DescendantFocus)
    def _hold_still(self, event: events.DescendantFocus) -> None:
        if self.motion == "reduced":
            appearance.hold_still(event.widget)

    def on_resize(self, event: events.Resize) -> None:
        """Where the terminal is too small, say so."""
        fit(self, event.size)
