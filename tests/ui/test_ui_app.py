"""The app as a process: what it imports, holds, says when it leaves, and how it bears errors."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.paths import Home
from engine.process import Identity
from engine.service import Service, StoreError
from fusion_tui import actions
from fusion_tui import format as fmt
from fusion_tui.daemon import SupervisorInfo
from fusion_tui.messages import Overview, Supervision
from fusion_tui.screens.help import HelpScreen
from fusion_tui.screens.runs import RunsScreen
from tests.conditions import eventually
from tests.ui.driving import LARGE, SMALL, Runs, open_app, screen_text, sees, until

ROOT = Path(__file__).parents[2]
NOT_AT_START = ("torch", "transformers", "peft", "bitsandbytes", "fastapi", "uvicorn", "plotext")


def test_the_app_opens_without_the_training_stack() -> None:
    script = f"import sys, fusion_tui.app; print([name for name in {NOT_AT_START} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def locked(home: Home) -> bool:
    """Say whether somebody else holds the app's lock."""
    with home.app_lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


async def test_an_open_app_holds_the_lock_and_two_may(service: Service) -> None:
    first, second = open_app(service), open_app(service)
    async with first.run_test(notifications=True, size=SMALL), second.run_test(notifications=True, size=SMALL) as pilot:
        await until(pilot, lambda: locked(service.home))
    assert not locked(service.home)


async def test_leaving_says_that_runs_keep_going(service: Service, runs: Runs) -> None:
    runs.start("one")
    runs.queue("two")
    runs.move(runs.queue("three"), "cancelled")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "1 running, 1 queued")
        await pilot.press("q")
    assert app.return_value == "1 run keeps going, 1 waits for a supervisor; fusion-tui starts one"
    assert [job.state for job in service.jobs()] == ["cancelled", "queued", "running"]


RUNS = {"running": 2, "queued": 1, "completed": 4}
WITH, WITHOUT = Supervision(running=True), Supervision(running=False)


@pytest.mark.parametrize(
    ("overview", "line"),
    [
        (Overview(), "Left before the job store was read."),
        (Overview(error="It is busy."), "The job store could not be read; fusion-tui doctor tells more."),
        (Overview(loaded=True, supervision=WITHOUT), "Nothing is running. fusion-tui brings your runs back."),
        (Overview(loaded=True, counts=RUNS), "3 runs keep going; fusion-tui brings them back"),
        (
            Overview(loaded=True, counts=RUNS, supervision=WITH, evidence={"a": "alive", "b": "gone"}),
            "3 runs keep going; fusion-tui brings them back",
        ),
        (
            Overview(loaded=True, counts=RUNS, supervision=WITHOUT, evidence={"a": "alive", "b": "lost"}),
            "1 run keeps going, 2 wait for a supervisor; fusion-tui starts one",
        ),
        (
            Overview(loaded=True, counts={"queued": 2}, supervision=WITHOUT),
            "2 runs wait for a supervisor; fusion-tui starts one",
        ),
        (
            Overview(loaded=True, counts={"running": 1}, evidence={"a": "lost"}),
            "1 run waits for a supervisor; fusion-tui starts one",
        ),
    ],
)
def test_the_line_that_is_left_behind_promises_no_more_than_is_known(overview: Overview, line: str) -> None:
    assert fmt.farewell(overview) == line


async def test_control_q_leaves_from_inside_a_field(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "No runs yet")
        await pilot.press("n")
        await sees(pilot, "can be queued")
        await pilot.press("ctrl+q")
    assert app.return_value == "Nothing is running. fusion-tui brings your runs back."


async def test_a_failing_store_is_reported_and_the_last_data_stays(service: Service, runs: Runs) -> None:
    runs.queue("still-here")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, "still-here")
        version = service.version

        def fail() -> int:
            raise StoreError("The job store is busy. Try again in a moment.")

        service.version = fail  # type: ignore[method-assign]
        await sees(pilot, "✗ The job store is busy", "still-here")
        service.version = version  # type: ignore[method-assign]
        await until(pilot, lambda: "busy" not in screen_text(app))


async def test_the_supervisor_is_shown_and_started_on_demand(service: Service) -> None:
    info = SupervisorInfo(Identity("boot", 1, 1), "http://127.0.0.1:7878")
    found: list[SupervisorInfo] = []
    app = open_app(service, supervisor=lambda: found[0] if found else None, start_supervisor=lambda: found.append(info))
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "no supervisor: press S to start")
        await pilot.press("S")
        await sees(pilot, "API http://127.0.0.1:7878 · supervisor runs")


async def test_a_supervisor_that_does_not_start_is_reported(service: Service) -> None:
    def fail() -> None:
        raise RuntimeError("the port is taken")

    app = open_app(service, start_supervisor=fail, start_on_open=True)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "did not start")


@pytest.mark.parametrize("action", actions.ACTIONS, ids=lambda action: action.id)
async def test_help_lists_every_action(service: Service, action: actions.Action) -> None:
    assert any(action.key_text == keys and action.tooltip == what for _, keys, what in actions.keys_table())


async def test_help_is_reached_by_a_key_and_shows_all_of_the_table(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=(160, 200)) as pilot:
        await sees(pilot, "No runs yet")
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        await sees(pilot, *(keys for _, keys, _ in actions.keys_table()), *(what for *_, what in actions.keys_table()))


async def test_the_palette_holds_the_actions_of_the_screen(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, "No runs yet")
        await pilot.press("ctrl+p", *"new run")
        await sees(pilot, "New run  (n)")
        await pilot.press("enter")
        await sees(pilot, "can be queued")


def test_every_action_has_an_id_of_its_own_and_no_key_means_two_things() -> None:
    ids = [action.id for action in actions.ACTIONS]
    assert len(ids) == len(set(ids))
    for scope in actions.SCOPES:
        keys = [key for action in actions.of_scope(scope) for key in action.keys]
        assert len(keys) == len(set(keys)), scope


async def test_every_action_can_be_carried_out_where_it_is_bound(service: Service, runs: Runs) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        job = runs.start()
        await sees(pilot, "a-run")
        screens = {"app": app, "runs": app.screen, "table": app.screen.query_one("RunsTable")}
        app.open_run(job.id)
        await sees(pilot, "step 40")
        screens |= {"run": app.screen, "page": app.screen.query_one("#events")}
        for action in actions.ACTIONS:
            if owner := screens.get(action.scope):
                name = action.call.split("(")[0].removeprefix("app.")
                assert hasattr(owner, f"action_{name}"), action


CHILD = """
import sys
import time
from pathlib import Path
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui import app
from store import db
app.LEAVE_SECONDS, db.BUSY_TIMEOUT_S = float(sys.argv[3]), 600.0
line = app.run_app(Service(Home(Path(sys.argv[1])), config=Settings()), start_supervisor=False)
Path(sys.argv[2]).write_text(line)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_closes_the_app_and_restores_the_terminal(
    service: Service, runs: Runs, tmp_path: Path, name: str
) -> None:
    runs.start()
    said = tmp_path / "said"
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-c", CHILD, str(service.home.root), str(said), "20"])
    os.set_blocking(terminal, False)
    seen = bytearray()
    eventually(lambda: _read(terminal, seen) or b"a-run" in seen, within=60, what="the first paint")
    os.kill(pid, getattr(signal, name))
    eventually(lambda: _read(terminal, seen) or said.exists(), within=60, what="the farewell")
    eventually(lambda: _read(terminal, seen) or os.waitpid(pid, os.WNOHANG)[0], within=60, what="the end")
    os.close(terminal)
    assert said.read_text() == "1 run keeps going; fusion-tui brings it back"
    assert b"\x1b[?1049l" in seen
    assert service.jobs()[0].state == "running"


def test_leaving_does_not_wait_for_a_call_that_stands_at_a_locked_store(
    service: Service, runs: Runs, tmp_path: Path
) -> None:
    leave = 5.0  # seconds: a slow machine takes one or two to close the app
    runs.start()
    said = tmp_path / "said"
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-c", CHILD, str(service.home.root), str(said), f"{leave}"])
    os.set_blocking(terminal, False)
    seen = bytearray()
    eventually(lambda: _read(terminal, seen) or b"a-run" in seen, within=60, what="the first paint")
    holder = sqlite3.connect(service.home.store, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    os.write(terminal, b"s")
    eventually(lambda: _read(terminal, seen) or b"Stop a-run" in seen, within=60, what="the question")
    os.write(terminal, b"y")
    os.write(terminal, b"q")
    began = time.monotonic()
    eventually(lambda: _read(terminal, seen) or said.exists(), within=60, what="the farewell")
    farewell = time.monotonic() - began
    code = eventually(lambda: _read(terminal, seen) or _ended(pid), within=60, what="the end")
    end = time.monotonic() - began
    holder.close()
    os.close(terminal)
    assert said.read_text() == "1 run keeps going; fusion-tui brings it back"
    assert b"\x1b[?1049l" in seen
    # The call itself would stand for ten minutes; that it did stand shows in the process' end.
    assert farewell < leave - 0.1 < end < leave + 60
    assert code == [0]


def _ended(pid: int) -> list[int]:
    """Return a child's exit code once it ended."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return [os.waitstatus_to_exitcode(status)] if found else []


def test_a_terminal_that_goes_away_ends_the_app(service: Service, runs: Runs, tmp_path: Path) -> None:
    runs.start()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-c", CHILD, str(service.home.root), str(tmp_path / "said"), "20"])
    os.set_blocking(terminal, False)
    seen = bytearray()
    eventually(lambda: _read(terminal, seen) or b"a-run" in seen, within=60, what="the first paint")
    os.close(terminal)
    eventually(lambda: os.waitpid(pid, os.WNOHANG)[0], within=60, what="the end")
    assert not locked(service.home)
    assert service.jobs()[0].state == "running"


def _read(terminal: int, into: bytearray) -> None:
    try:
        into += os.read(terminal, 65536)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno != errno.EIO:
            raise


async def test_the_first_screen_is_the_list_of_runs(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL):
        assert isinstance(app.screen, RunsScreen)
