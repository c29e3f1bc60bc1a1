"""How the app looks: on few colours, on none, on little room, over a slow link."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
from rich.color import ColorType
from rich.style import Style
from textual import events
from textual.app import App
from textual.geometry import Size
from textual.widgets import DataTable, Input

from engine.errors import EngineError
from engine.service import Service
from fusion_tui import appearance
from fusion_tui.appearance import REDUCED_INTERVAL_S, contrast
from fusion_tui.poller import INTERVAL_S
from fusion_tui.screens.too_small import LEAST, TooSmall
from tests.ui.driving import LARGE, SMALL, Runs, open_app, screen_text, sees, until

# Each with its sign: what a terminal without colours has to go by.
STATES = ("○ queued", "● running", "✓ completed", "✗ failed", "⊘ cancelled")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "SSH_CONNECTION", "SSH_TTY", "TEXTUAL_ANIMATIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def every_state(runs: Runs) -> None:
    """One run in each state that a run ends in, one that waits and one that trains."""
    runs.queue("waits")
    runs.move(runs.queue("undone"), "cancelled")
    for state in ("completed", "failed"):
        runs.move(runs.queue(state), "provisioning", "staging", "running", *_end(state))
    runs.start("trains")


def _end(state: str) -> tuple[str, ...]:
    return ("uploading", "completed") if state == "completed" else (state,)


def styles(app: App[Any]) -> Iterator[tuple[str, Style]]:
    """Yield each text on the screen that is not blank, with the style that goes to the terminal."""
    for strip in app.screen._compositor.render_strips():
        yield from ((text, style or Style()) for text, style, _ in strip if text.strip())


def kinds(app: App[Any]) -> set[ColorType]:
    """Return the kinds of all colours on the screen."""
    return {color.type for _, style in styles(app) for color in (style.color, style.bgcolor) if color}


def test_the_theme_to_begin_with() -> None:
    assert appearance.theme_of("auto", "", "truecolor") == "dark"
    assert appearance.theme_of("auto", "", "256") == "dark"
    assert appearance.theme_of("auto", "", None) == "dark"
    assert appearance.theme_of("auto", "", "standard") == "ansi"
    assert appearance.theme_of("auto", "", "truecolor", no_color=True) == "ansi"
    assert appearance.theme_of("light", "", "standard") == "light"
    assert appearance.theme_of("light", "dark", "truecolor") == "dark"
    assert appearance.theme_of("light", "no-such-theme", "truecolor") == "light"


def test_motion_is_reduced_over_ssh_unless_the_setting_says_otherwise() -> None:
    here, there = {"TERM": "xterm"}, {"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}
    assert [appearance.motion_of("auto", one) for one in (here, there, {"SSH_TTY": "/dev/pts/1"})] == [
        "full",
        "reduced",
        "reduced",
    ]
    assert (appearance.motion_of("full", there), appearance.motion_of("reduced", here)) == ("full", "reduced")


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_place_its_cursor_is_told_what_is_needed(term: str) -> None:
    with pytest.raises(EngineError, match=rf"TERM is '{term}'.*xterm-256color.*fusion-tui --help"):
        appearance.need_terminal({"TERM": term})
    appearance.need_terminal({"TERM": "screen"})


def test_terminals_without_colour_are_known() -> None:
    assert all(appearance.without_colour({"TERM": term}) for term in ("vt100", "vt220", "xterm-mono"))
    assert not any(appearance.without_colour({"TERM": term}) for term in ("xterm-256color", "linux", "screen", "tmux"))
    assert appearance.without_colour({"NO_COLOR": "1"})
    assert not appearance.without_colour({"NO_COLOR": ""})  # as no-color.org has it


@pytest.mark.usefixtures("every_state")
@pytest.mark.parametrize("theme", ["dark", "light"])
async def test_what_stands_on_the_screen_can_be_told_from_its_ground(
    service: Service, theme: Literal["dark", "light"]
) -> None:
    service.settings = replace(service.settings, theme=theme)
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, *STATES)
        await pilot.press("j")
        assert app.theme == theme
        faint = {
            (text.strip(), str(style))
            for text, style in styles(app)
            if style.color and style.bgcolor and style.color.triplet and style.bgcolor.triplet
            if contrast(style.color.triplet, style.bgcolor.triplet) < 2.5 and any(map(str.isalnum, text))
        }
        assert not faint


@pytest.mark.usefixtures("every_state")
async def test_the_ansi_theme_sends_the_terminals_own_sixteen_colours_alone(service: Service) -> None:
    service.settings = replace(service.settings, theme="ansi")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, *STATES, "eval 5.250")
        assert kinds(app) == {ColorType.STANDARD, ColorType.DEFAULT}
        assert any(style.reverse and "trains" in text for text, style in styles(app))
        await pilot.press("s")
        await sees(pilot, "Stop trains?")
        assert kinds(app) <= {ColorType.STANDARD, ColorType.DEFAULT}


@pytest.mark.usefixtures("every_state")
@pytest.mark.parametrize("theme", ["auto", "dark"])
async def test_no_color_leaves_no_colour_and_every_state_its_sign_and_word(
    service: Service, monkeypatch: pytest.MonkeyPatch, theme: Literal["auto", "dark"]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    service.settings = replace(service.settings, theme=theme)
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, *STATES, "eval 5.250")
        assert kinds(app) <= {ColorType.DEFAULT}
        assert any(style.reverse and "trains" in text for text, style in styles(app))


async def test_over_ssh_nothing_moves_and_news_come_once_a_second(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    app = open_app(service, interval=None)
    assert app.poller._interval == REDUCED_INTERVAL_S > INTERVAL_S
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "No runs yet")
        assert app.animation_level == "none"
        await pilot.press("slash")
        await until(pilot, lambda: isinstance(app.focused, Input) and not app.focused.cursor_blink)


async def test_the_setting_brings_motion_back_over_ssh(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_TTY", "/dev/pts/1")
    service.settings = replace(service.settings, motion="full")
    app = open_app(service, interval=None)
    assert (app.animation_level, app.poller._interval) == ("full", INTERVAL_S)


async def test_a_terminal_that_is_too_small_is_told_what_is_needed_and_the_screen_comes_back(
    service: Service, runs: Runs
) -> None:
    runs.start("a-run")
    app = open_app(service)
    async with app.run_test(notifications=True, size=(40, 12)) as pilot:
        await sees(pilot, "Too small: 40×12", f"Fusion needs {LEAST.width}×{LEAST.height}", "q quits")
        await pilot.press("s", "n", "ctrl+p", "escape", "enter")
        assert [type(screen) for screen in app.screen_stack[1:]] == [TooSmall]
        await pilot.resize_terminal(20, 5)
        await sees(pilot, "Too small: 20×5")
        await pilot.resize_terminal(*SMALL)
        await sees(pilot, "a-run", "Stop")
        assert len(app.screen_stack) == 1
        for width in (40, 80, 30, 100, 59, 60, 10):  # a storm, of which the last one counts
            app.post_message(events.Resize(Size(width, 24), Size(width, 24)))
        await sees(pilot, "Too small: 10×24")
        await pilot.press("q")
    assert app.return_value


async def test_what_counts_is_in_sight_at_the_least_size(service: Service, runs: Runs) -> None:
    job = runs.start("a-run")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LEAST) as pilot:
        await sees(pilot, "● running", "a-run", "10%", "2.333", "eval 5.250", "s Stop")
        assert app.query_one(DataTable).size.height >= 3  # head, a run, and the one after it
        await pilot.press("s")
        await sees(pilot, "Stop a-run?", "No (n)", "Yes (y)")
        await pilot.press("n")
        app.open_run(job.id)
        await sees(pilot, "step 40/400", "Checkpoints", "memory GB", "s Stop")
        assert "Too small" not in screen_text(app)
