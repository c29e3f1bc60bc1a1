"""The app in a real terminal, by real keys: a run is made, watched, outlives the app, is found again and stopped."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.doctor.background import workers
from engine.doctor.finding import Machine
from engine.service import Job, Point, Service
from fusion_tui import daemon
from fusion_tui import format as fmt
from tests.conditions import eventually
from tests.supervised import Supervised

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
SIZES = ((80, 24), (160, 45))
NUMBERS = itertools.count()


class Terminal:
    """A tmux server of its own with one window."""

    def __init__(self, folder: Path, environment: dict[str, str], size: tuple[int, int]) -> None:
        self._socket = str(folder / f"tmux-{next(NUMBERS)}")
        self._environment = environment
        self._size = size

    def tmux(self, *arguments: str) -> str:
        """Run a tmux command and return what it printed."""
        command = ["tmux", "-f", "/dev/null", "-S", self._socket, *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=True).stdout

    def open(self, command: str) -> None:
        """Open the window on a command; its last words stay readable."""
        width, height = map(str, self._size)
        shell = f"{command}; echo ENDED $?; sleep 600"
        self.tmux("new-session", "-d", "-x", width, "-y", height, "bash", "--norc", "-c", shell)

    def keys(self, *keys: str) -> None:
        """Press keys."""
        self.tmux("send-keys", *keys)

    def screen(self) -> str:
        """Return what is on the screen."""
        return self.tmux("capture-pane", "-p")

    def until(self, text: str, *, within: float = 120.0) -> str:
        """Wait until the screen shows `text`, and return the screen."""

        def shown() -> str | None:
            screen = self.screen()
            return screen if text in screen else None

        try:
            return eventually(shown, within=within, every=0.1)
        except AssertionError:
            raise AssertionError(f"'{text}' was not shown within {within} s:\n{self.screen()}") from None

    def until_gone(self, text: str) -> None:
        """Wait until the screen no longer shows `text`."""
        eventually(lambda: text not in self.screen(), every=0.1, what=f"the end of '{text}'")

    def app(self) -> psutil.Process:
        """Return the process of the app in the window."""
        pane = psutil.Process(int(self.tmux("display-message", "-p", "#{pane_pid}")))
        return pane.children()[0]

    def close(self) -> None:
        """End the tmux server and what runs in it."""
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def environment(service: Service) -> Iterator[dict[str, str]]:
    """The environment of a user with a tiny model; ends the supervisor that the app starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield {
        **os.environ,
        "FUSION_HOME": str(service.home.root),
        "FUSION_PORT": str(port),
        "FUSION_CONFIG": str(service.home.root / "config.toml"),
        "LANG": "C.UTF-8",
    }
    assert daemon.stop_running(service.home)


def chart_of(screen: str) -> str:
    """Return the lines of the chart."""
    return "\n".join(line for line in screen.splitlines() if "│" in line or "┤" in line)


@pytest.mark.parametrize(
    "size", [pytest.param(SIZES[0], id="80x24"), pytest.param(SIZES[1], id="160x45", marks=pytest.mark.slow)]
)
def test_a_run_made_in_the_app_outlives_it_and_is_found_again(
    service: Service, environment: dict[str, str], size: tuple[int, int], tmp_path: Path
) -> None:
    command = f"{sys.executable} -m fusion_tui.cli"
    first = Terminal(tmp_path, environment, size)
    first.open(command)
    try:
        first.until("n New run")
        first.keys("n")
        first.until("New run: finetune")
        # The cursor is in `steps`, with its value selected; model and dataset are above.
        first.keys(*"600000", "Tab", "Tab", "6", "4")
        first.until("seq_len=64")
        # In both lists `starter` stands first and the one wanted below it.
        for steps_up, chosen in ((3, "--dataset sums"), (1, "--model tiny")):
            first.keys(*["BTab"] * steps_up, "Enter")
            first.until("Dismiss menu")
            first.keys("Down", "Enter")
            first.until(chosen)
        first.until("can be queued")
        first.keys("F2")
        job = eventually(service.jobs, what="the run in the store")[0]
        assert (job.hyperparams["steps"], job.hyperparams["seq_len"]) == (600_000, 64)

        first.until("tok/s")
        eventually(lambda: service.job(job.id).step > 20, what="twenty steps")
        before = chart_of(first.until("smoothed"))
        eventually(lambda: chart_of(first.screen()) != before, every=0.1, what="a moving chart")

        first.app().kill()
        first.until("ENDED 137")
        step = service.job(job.id).step
        eventually(lambda: service.job(job.id).step > step + 20, what="the step counter rising without the app")
    finally:
        first.close()

    second = Terminal(tmp_path, environment, size)
    second.open(command)
    try:
        second.until(job.name[:12])
        second.keys("Enter")
        second.until("Checkpoints")
        second.until("smoothed")
        second.keys("s")
        second.until("Stop finetune-tiny")
        second.keys("Enter")
        second.until_gone("Stop finetune-tiny")
        second.keys("q")
        second.until("1 run keeps going; fusion-tui brings it back")
        second.until("ENDED 0")
        assert (service.job(job.id).state, service.job(job.id).stop_requested) == ("running", False)
    finally:
        second.close()
    service.cancel(job.id)
    eventually(lambda: service.job(job.id).finished, what="the end")


# How the app or its terminal may end; the first closes the pty under it, as a dropped SSH session does.
ENDS: dict[str, Callable[[Terminal], object]] = {
    "hang-up": Terminal.close,
    "SIGHUP": lambda terminal: terminal.app().send_signal(signal.SIGHUP),
    "SIGTERM": lambda terminal: terminal.app().send_signal(signal.SIGTERM),
    "SIGKILL": lambda terminal: terminal.app().kill(),
}


def asked(supervised: Supervised, path: str) -> Any:
    """Return what the API answers."""
    request = urllib.request.Request(
        f"{supervised.url}{path}", headers={"Authorization": f"Bearer {supervised.service.token()}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_run_goes_on_however_the_app_ends_and_reopened_it_shows_the_numbers_of_store_and_api(
    supervised: Supervised, environment: dict[str, str], tmp_path: Path
) -> None:
    job = supervised.submit(steps=1_000_000, save_steps=1000)
    supervised.until_step(job.id, 5)
    worker = supervised.worker(job.id)
    [well] = workers(Machine(supervised.service.home))
    assert (well.level, well.seen) == ("ok", "1 at work for the 1 runs that should have one")
    for name, end in ENDS.items():
        terminal = Terminal(tmp_path, environment, SIZES[0])
        terminal.open(f"{sys.executable} -m fusion_tui.cli")
        try:
            terminal.until(job.name[:12])
            app = terminal.app()
            end(terminal)
            eventually(lambda app=app: not app.is_running() or app.status() == "zombie", what=f"the app's end: {name}")
            step = supervised.job(job.id).step
            supervised.until_step(job.id, step + 10)
            assert supervised.worker(job.id) == worker, name
        finally:
            terminal.close()

    terminal = Terminal(tmp_path, environment, SIZES[1])
    terminal.open(f"{sys.executable} -m fusion_tui.cli")
    try:
        terminal.until(job.name[:12])
        terminal.keys("Enter")
        terminal.until("Checkpoints")
        terminal.keys("s")
        terminal.until("Stop finetune-tiny")
        assert not supervised.job(job.id).stop_requested
        terminal.keys("y")
        ended = supervised.until_finished(job.id)
        assert ended.state == "cancelled"
        terminal.until("cancelled")
        newest = shown_by_the_api(supervised, ended)
        terminal.until(f"step {ended.step}/1000000")
        terminal.until(f"loss {fmt.number(newest.loss)}")
    finally:
        terminal.close()


def shown_by_the_api(supervised: Supervised, job: Job) -> Point:
    """Check that the API tells of a finished job what the store does; return its newest point."""
    newest = [point for point in supervised.service.points(job.id) if point.phase == "train"][-1]
    told = asked(supervised, f"/jobs/{job.id}")
    assert (told["id"], told["status"], newest.step) == (job.id, job.state, job.step)
    point = [one for one in asked(supervised, f"/jobs/{job.id}/metrics")["points"] if one["phase"] == "train"][-1]
    assert (point["step"], point["loss"]) == (newest.step, newest.loss)
    return newest
