"""Reads off the screens what is to be remembered, and puts it back when the app is opened again.

The rule: it looks at screens from outside, never keeps one waiting, and gives way to whatever the user does first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from textual.screen import Screen
from textual.widgets import Input

from fusion_tui import remembered
from fusion_tui.messages import Overview
from fusion_tui.remembered import Remembered
from fusion_tui.widgets.curve import AXES, SMOOTHING
from fusion_tui.widgets.loss_chart import LossChart
from fusion_tui.widgets.runs_table import RunsTable

if TYPE_CHECKING:
    from fusion_tui.app import FusionApp

SAVE_EVERY_S = 15.0  # a terminal that is killed loses no more than that
# Screens that are opened again: those that show what is there. A form would come back without its content.
REOPENED = ("run", "datasets", "models", "system")


class Returning:
    """What one app remembers of its store. `theme_setting` is the theme of the settings file."""

    def __init__(self, app: FusionApp, theme_setting: str) -> None:
        self._app = app
        self._path = app.service.home.app_state
        self._theme_setting = theme_setting
        self._saved = self.now = remembered.read(self._path)
        self._left = False
        self._selection = self.now.selected  # to be put back, until it is or the user chose another

    # Opening ----------------------------------------------------------------------------------------------------------

    @property
    def theme(self) -> str:
        """The theme that was chosen in the app, empty where the settings file says another since."""
        return self.now.chosen_theme(self._theme_setting)

    def open(self) -> None:
        """Put back what needs no runs to be known, and save from now on."""
        self._app.set_interval(SAVE_EVERY_S, self._save)
        # After the first screen is there: it is the one below.
        self._app.call_after_refresh(self._reopen)

    def _reopen(self) -> None:
        home = self._app.screen_stack[0]
        if self.now.filter and (field := _filter_of(home)) and not field.value:
            field.value, field.display = self.now.filter, True
        if len(self._app.screen_stack) > 1 or self.now.screen not in REOPENED:
            return
        if self.now.screen == "run":
            if self.now.run:
                self._app.open_run(self.now.run)
        elif action := getattr(self._app, f"action_{self.now.screen}", None):
            action()

    def overview_came(self, overview: Overview) -> None:
        """Put the cursor back on its run, once there are runs."""
        if self._selection and overview.loaded:
            self._app.call_after_refresh(self._select)

    def _select(self) -> None:
        table = _table_of(self._app.screen_stack[0])
        if table is None or not self._selection or not table.row_count:
            return
        wanted, self._selection = self._selection, ""
        places = [row.key.value for row in table.ordered_rows]
        if wanted in places and table.cursor_row == 0:
            table.move_cursor(row=places.index(wanted))

    def show_look(self, screen: Screen[Any]) -> None:
        """Have a screen that was just made draw its chart as the last one was drawn."""
        screen.call_later(partial(_put_look, screen, self.now))

    # Remembering ------------------------------------------------------------------------------------------------------

    def look_round(self) -> None:
        """Take in what the screens show now; before a screen goes, and before it is saved."""
        if self._left:
            return
        stack = self._app.screen_stack
        for screen in stack:
            self.now = _seen(screen, self.now, selection=self._selection)
        scope, run = _open_screen(stack)
        self.now = replace(self.now, screen=scope, run=run)

    def choose_theme(self, theme: str) -> None:
        """Remember a theme chosen in the app."""
        self.now = replace(self.now, theme=theme, theme_setting=self._theme_setting)
        self._save()

    def _save(self) -> None:
        self.look_round()
        if self.now != self._saved and not self._app.service.read_only:
            self._saved = self.now
            # A disk may be slow; nobody waits for this.
            write = partial(remembered.write, self._path, self.now)
            self._app.run_worker(write, thread=True, group="remember", exit_on_error=False)

    def leave(self) -> None:
        """Look round for the last time: from here on the screens go one by one."""
        self.look_round()
        self._left = True

    def close(self) -> None:
        """Save for the last time, at once: no thread outlives the app."""
        if self.now != self._saved and not self._app.service.read_only:
            self._saved = self.now
            remembered.write(self._path, self.now)


def _filter_of(screen: Screen[Any]) -> Input | None:
    return next(iter(screen.query("#filter").results(Input)), None)


def _table_of(screen: Screen[Any]) -> RunsTable | None:
    return next(iter(screen.query(RunsTable)), None)


def _seen(screen: Screen[Any], before: Remembered, *, selection: str) -> Remembered:
    """Return what is remembered after a look at one screen; `selection` is a run whose row has yet to come."""
    scope = getattr(screen, "SCOPE", "")
    if scope == "runs":
        field, table = _filter_of(screen), _table_of(screen)
        return replace(
            before,
            filter=field.value if field else before.filter,
            selected=selection or (table and table.selected) or before.selected,
        )
    chart = next(iter(screen.query(LossChart)), None)
    if scope == "run" and chart:
        return replace(before, axis=chart.look.axis, log_y=chart.look.log_y, level=chart.look.level)
    return before


def _open_screen(stack: Sequence[Screen[Any]]) -> tuple[str, str]:
    """Return the uppermost screen that can be opened again, and the run that it shows."""
    for screen in reversed(stack):
        scope = getattr(screen, "SCOPE", "")
        if scope in REOPENED:
            return scope, getattr(screen, "job_id", "")
    return "runs", ""


def _put_look(screen: Screen[Any], kept: Remembered) -> None:
    for chart in screen.query(LossChart):
        look = replace(chart.look, log_y=kept.log_y)
        if kept.axis in AXES:
            look = replace(look, axis=kept.axis)
        if 0 <= kept.level < len(SMOOTHING):
            look = replace(look, level=kept.level)
        chart.set_look(look)
