"""The app in a real terminal, by real keys: a run is made, watched, outlives the app, is found again and stopped."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.service import Service
from fusion_tui import daemon
from tests.conditions import eventually

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

    def until(self, text: str, *, within: float = 60.0) -> str:
        """Wait until the screen shows `text`, and return the screen."""

        def shown() -> str | None:
            screen = self.screen()
            return screen if text in screen else None

        try:
            return eventually(shown, within=within)
        except AssertionError:
            raise AssertionError(f"'{text}' was not shown within {within} s:\n{self.screen()}") from None

    def until_gone(self, text: str) -> None:
        """Wait until the screen no longer shows `text`."""
        eventually(lambda: text not in self.screen(), within=20, what=f"the end of '{text}'")

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


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "160x45"])
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
        first.keys("6", "0", "0", "0", "Tab", "Tab", "6", "4")
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
        assert (job.hyperparams["steps"], job.hyperparams["seq_len"]) == (6000, 64)

        first.until("tok/s", within=90)
        eventually(lambda: service.job(job.id).step > 20, what="twenty steps")
        before = chart_of(first.until("smoothed"))
        eventually(lambda: chart_of(first.screen()) != before, within=20, what="a moving chart")

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
        second.keys("s")
        second.until("Stop finetune-tiny")
        assert not service.job(job.id).stop_requested
        second.keys("y")
        eventually(lambda: service.job(job.id).finished, what="the stop")
        assert service.job(job.id).state == "cancelled"
        second.until("cancelled")
        service.retry(job.id)
        eventually(lambda: service.job(job.id).state == "running", what="the retry")
        second.until("running")
        second.keys("q")
        second.until("1 run keeps going; fusion-tui brings it back")
        second.until("ENDED 0")
        service.cancel(job.id)
        eventually(lambda: service.job(job.id).finished, what="the end")
    finally:
        second.close()
