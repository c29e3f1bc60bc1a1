"""Keys that a user changed: what the settings file may say, what is refused, and that every place shows what holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import settings
from engine.errors import EngineError
from engine.service import Service
from fusion_tui import keymap
from fusion_tui.screens.confirm import Confirm
from tests.ui.driving import LARGE, SMALL, Runs, open_app, sees, until

FILE = "/etc/config.toml"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"runs.stpo": "x"}, "runs.stpo is not an action. Did you mean 'runs.stop'?"),
        ({"stop": "x"}, "stop is not an action. Did you mean 'r"),
        ({"runs.stop": "pagedwn"}, "'pagedwn' is not a key. Did you mean 'pagedown'?"),
        ({"runs.stop": "ctlr+x"}, "'ctlr+x' is not a key. Did you mean 'ctrl'?"),
        ({"runs.stop": "\x1b"}, "is not a key"),
        ({"runs.stop": ""}, "'' is not a key"),
        ({"runs.stop": []}, "must be a key"),
        ({"runs.stop": 7}, "must be a key"),
        ({"runs.stop": ["f8", 7]}, "must be a key"),
        ({"runs.stop": "r"}, "runs.stop and runs.retry both have the key r. Give one of them another."),
        ({"runs.stop": "f8", "runs.retry": ["x", "f8"]}, "runs.stop and runs.retry both have the key F8"),
    ],
)
def test_a_key_map_with_a_fault_is_refused_with_the_file_and_the_entry(entries: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError) as caught:
        keymap.read(entries, FILE)
    assert str(caught.value).startswith(f"{FILE}: keys: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("written", "names", "shown"),
    [
        ("x", ("x",), "x"),
        ("X", ("X",), "X"),
        ("shift+x", ("X",), "X"),
        ("Ctrl+X", ("ctrl+x",), "Ctrl+X"),
        ("F8", ("f8",), "F8"),
        ("PgDn", ("pagedown",), "Pagedown"),
        ("shift+ctrl+left", ("ctrl+shift+left",), "Ctrl+Shift+LEFT"),
        ("!", ("exclamation_mark",), "!"),
        (",", ("comma",), ","),
        ("ctrl++", ("ctrl+plus",), "Ctrl+PLUS"),
        (["é", "f8", "F8"], ("é", "f8"), "é or F8"),
    ],
)
def test_keys_may_be_written_as_people_write_them(written: object, names: tuple[str, ...], shown: str) -> None:
    found = keymap.read({"runs.stop": written}, FILE)
    assert found.changed["runs.stop"] == names
    assert found.text("runs.stop").lower() == shown.lower()
    assert not found.warnings


def test_two_actions_may_change_places() -> None:
    found = keymap.read({"runs.stop": "r", "runs.retry": "s"}, FILE)
    assert (found.text("runs.stop"), found.text("runs.retry"), found.warnings) == ("r", "s", ())


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"runs.stop": "ctrl+i"}, "Ctrl+I is the same as Tab on most terminals"),
        ({"runs.stop": ["ctrl+m", "ctrl+s"]}, "Ctrl+S stops the output of some terminals"),
        ({"runs.stop": "ctrl+b"}, "Ctrl+B is the prefix of tmux"),
        ({"runs.stop": "ctrl+shift+k"}, "the same as Ctrl+K"),
        ({"runs.stop": "super+k"}, "is kept by most desktops"),
        ({"runs.stop": "j"}, "table.down takes j from runs.stop"),
        ({"app.quit": "s"}, "runs.stop takes s from app.quit"),
    ],
)
def test_keys_that_may_not_arrive_are_warned_of(entries: dict[str, Any], words: str) -> None:
    assert words in " ".join(keymap.read(entries, FILE).warnings)


def test_a_doubtful_key_beside_a_good_one_is_no_matter() -> None:
    assert keymap.read({"runs.stop": ["ctrl+s", "f8"]}, FILE).warnings == ()


def test_without_changes_nothing_is_changed_or_warned_of() -> None:
    assert keymap.read({}, FILE) == keymap.Keymap({})


def configured(service: Service, path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the service go by a settings file with this text."""
    path.write_text(text)
    monkeypatch.setenv("FUSION_CONFIG", str(path))
    service.settings = settings.load()


async def test_the_settings_file_changes_keys_footer_palette_and_help(
    service: Service, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.start("a-run")
    # As TOML has it, an id without quotes is a table in a table.
    text = '[keys]\nruns.stop = "F8"\n"app.help" = ["f1", "?"]\ntable.down = "ctrl+n"\n'
    configured(service, tmp_path / "config.toml", text, monkeypatch)
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, "a-run", "F8 Stop", "F1 Help")
        await pilot.press("s", "question_mark")
        await sees(pilot, "F8 Finish the step", "F1 or ? Show every key", "Ctrl+N Next line")
        await pilot.press("escape", "ctrl+p", *"stop")
        await sees(pilot, "Stop (F8)")
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.screen_stack[0])
        await pilot.press("s")
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        assert len(app.screen_stack) == 2
        await pilot.press("n")


async def test_a_changed_key_of_the_app_works_inside_a_field_too(service: Service) -> None:
    service.settings = replace(service.settings, keys={"app.quit": "f10"})
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "No runs yet")
        await pilot.press("slash", "q", "f10")
    assert app.return_value is not None


async def test_a_doubtful_key_is_told_of_when_the_app_opens(service: Service) -> None:
    service.settings = replace(service.settings, keys={"runs.stop": "ctrl+m"})
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        told = "runs.stop may be out of reach: Ctrl+M is the same as Enter"
        await until(pilot, lambda: any(told in one.message for one in app._notifications), within=10)


def test_the_app_does_not_open_with_a_key_map_that_it_refuses(service: Service) -> None:
    service.settings = replace(service.settings, keys={"runs.stpo": "f8"})
    with pytest.raises(EngineError, match=r"runs\.stpo is not an action"):
        open_app(service)
