"""System: the machine with its processes and its disk, settings through a real editor, API keys, doctor."""

from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import TabbedContent

from engine import process, settings, sizes
from engine.service import Service
from engine.settings import Settings
from fusion_tui import daemon
from fusion_tui.screens import system
from fusion_tui.screens.confirm import Confirm
from fusion_tui.screens.system import SystemScreen
from tests.conditions import eventually
from tests.ui.driving import LARGE, SMALL, Runs, open_app, screen_text, sees, until


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the screen look again soon, so that no test waits for its two seconds."""
    monkeypatch.setattr(system, "LOOK_EVERY_S", 0.3)


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file, which is not there yet."""
    path = tmp_path / "config" / "config.toml"
    monkeypatch.setenv("FUSION_CONFIG", str(path))
    monkeypatch.delenv("FUSION_PORT", raising=False)
    return path


@pytest.fixture
def standing_in(service: Service) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is written down as the supervisor, and leaves when told."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    identity = process.identify(child.pid)
    assert identity
    service.home.supervisor_info.write_text(json.dumps({**asdict(identity), "url": "http://127.0.0.1:7999"}))
    yield child
    child.kill()
    child.wait()


async def go(pilot: Pilot[Any], pane: str = "machine-pane") -> None:
    """Go to the screen and one of its pages."""
    await pilot.press("4")
    await until(pilot, lambda: isinstance(pilot.app.screen, SystemScreen))
    pilot.app.screen.query_one(TabbedContent).active = pane


async def test_the_machine_is_shown_and_its_supervisor_stopped_when_asked(
    service: Service, runs: Runs, standing_in: subprocess.Popen[bytes]
) -> None:
    job = runs.start("at-work")
    saved = service.home.attempt(job.id, 1) / "checkpoints" / "step-1"
    saved.mkdir(parents=True)
    (saved / "weights").write_bytes(b"0" * 5000)
    (saved.parent / "again").hardlink_to(saved / "weights")
    (service.home.run(job.id) / "spec.json").write_bytes(b"0" * 700)
    app = open_app(service, supervisor=partial(daemon.running, service.home))
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await go(pilot)
        await sees(pilot, "cpu", "busy", "GB", f"pid {standing_in.pid}", "since 20", "http://127.0.0.1:7999")
        await sees(pilot, str(os.getpid()), "at-work", "on the card", "checkpoints 5.0 kB", "runs 700 B")
        await pilot.resize_terminal(*SMALL)
        await pilot.press("tab", "G")
        await sees(pilot, "taken here", "checkpoints 5.0 kB")
        await pilot.press("s")
        await sees(pilot, "Stop the supervisor?", "Runs at work go on")
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(app.screen, Confirm))
        assert standing_in.poll() is None
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y", "g")
        await until(pilot, lambda: standing_in.poll() is not None)
        await sees(pilot, "press S to start it")
    assert [disk.whole for disk in sizes.of_home(service.home)][-1]
    assert not any(disk.whole for disk in sizes.of_home(service.home, lambda: True))


async def test_settings_show_where_each_value_comes_from(
    service: Service, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=(160, 60)) as pilot:
        await go(pilot, "settings-pane")
        await sees(pilot, "not there yet: every setting has its default", *(field.name for field in fields(Settings)))
        config.parent.mkdir()
        config.write_text("usd_per_gpu_hour = 1.75\nkeep_checkpoints = 2\n")
        monkeypatch.setenv("FUSION_PORT", "7901")
        await pilot.press("u")
        await sees(pilot, "usd_per_gpu_hour 1.75 file 0.0", "port 7901 FUSION_PORT 7878", "keep_checkpoints 2 default")
        assert service.settings.usd_per_gpu_hour == 1.75
        config.write_text("keep_checkpoint = 3\n")
        await pilot.press("u")
        await sees(pilot, "Did you mean 'keep_checkpoints'?", "what was read before", "usd_per_gpu_hour 1.75 file")
        assert service.settings.usd_per_gpu_hour == 1.75


async def test_keys_show_no_secret_and_an_editor_that_is_not_there_is_named(
    service: Service, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", "no-such-editor --wait")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await go(pilot, "keys-pane")
        await sees(pilot, "No API keys yet", "fusion-tui keys add")
        made = service.make_key("nightly", ("read", "train"))
        await sees(pilot, "nightly", "read, train", "(now)")
        assert made.secret[:8] not in screen_text(app)
        await pilot.press("e")
        await sees(pilot, "no-such-editor --wait is no program here.")
        monkeypatch.setenv("VISUAL", "true")
        await pilot.press("e")
        await sees(pilot, "This terminal cannot be handed to an editor.")
    # What was begun for the editor holds every setting and changes none.
    assert [field.name for field in fields(Settings) if f"# {field.name} = " not in config.read_text()] == []
    assert settings.load() == Settings()


CHILD = """
import sys
from pathlib import Path
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui import app
app.run_app(Service(Home(Path(sys.argv[1])), config=Settings()), start_supervisor=False)
"""


def test_the_settings_are_edited_in_a_real_terminal_and_read_again(
    service: Service, tmp_path: Path, config: Path
) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho "THE EDITOR HAS $1"\nread line\necho "max_upload_gb = 31.25" >> "$1"\n')
    editor.chmod(0o755)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "EDITOR": str(editor), "COLUMNS": "100", "LINES": "40"}
        os.environ.pop("VISUAL", None)
        os.execv(sys.executable, [sys.executable, "-c", CHILD, str(service.home.root)])
    os.set_blocking(terminal, False)
    seen = bytearray()
    eventually(lambda: _read(terminal, seen) or b"No runs yet" in seen, within=60, what="the first paint")
    os.write(terminal, b"4")
    eventually(lambda: _read(terminal, seen) or b"Devices" in seen, within=60, what="the screen")
    os.write(terminal, b"e")
    eventually(lambda: _read(terminal, seen) or b"THE EDITOR HAS " in seen, within=60, what="the editor")
    assert b"31.25" not in seen
    os.write(terminal, b"\n")
    eventually(lambda: _read(terminal, seen) or b"31.25" in seen, within=60, what="the new setting")
    os.write(terminal, b"q")
    eventually(lambda: _read(terminal, seen) or os.waitpid(pid, os.WNOHANG)[0], within=60, what="the end")
    os.close(terminal)
    assert settings.load().max_upload_gb == 31.25


def _read(terminal: int, into: bytearray) -> bool:
    """Take what the terminal was sent; always False, so that a condition may begin with it."""
    try:
        into += os.read(terminal, 65536)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    return False


async def test_doctor_tells_what_to_do_and_is_ended_by_a_key_with_the_interpreter_that_it_waits_for(
    service: Service, config: Path, tmp_path: Path
) -> None:
    interpreter = tmp_path / "python"  # stands for one that answers late
    interpreter.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    interpreter.chmod(0o755)
    config.parent.mkdir()
    config.write_text(f'trainer_python = "{interpreter}"\n')
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await go(pilot, "doctor-pane")
        await sees(pilot, "Not looked yet.", "Press d")
        await pilot.press("d")
        await sees(pilot, "asking the training interpreter", "x ends it")
        pid = await until(pilot, lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        await pilot.press("x")
        await sees(pilot, "ended before its end; d looks again")
        await until(pilot, lambda: not Path(f"/proc/{pid}").exists())
        assert "error trainer" not in screen_text(app)
        config.write_text('trainer_python = "/no/such/python"\n')
        await pilot.press("d")
        await sees(
            pilot, "✗ error trainer: trainer_python is /no/such/python", "→ Set trainer_python to", "✓ ok sqlite:"
        )
        await until(pilot, lambda: "x ends it" not in screen_text(app))
        text = screen_text(app)
        assert text.index("✗ error") < text.index("✓ ok")
