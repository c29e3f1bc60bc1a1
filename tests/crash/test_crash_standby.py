"""Two supervisors of one data folder: one holds the queue, the other reads and waits for its turn."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import process
from engine.running.supervisor import AlreadyRunning, Supervisor
from engine.service import Service
from fusion_tui import daemon
from store import attempts
from store.attempts import Attempt
from tests.conditions import eventually
from tests.crash import light


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Serving:
    """`fusion-tui serve` processes on one data folder, and what they said."""

    def __init__(self, service: Service, folder: Path, executable: Path) -> None:
        self.service = service
        self._folder = folder
        config = folder / "config.toml"
        config.write_text(f'trainer_python = "{executable}"\n')
        self._environment = {**os.environ, "FUSION_HOME": str(service.home.root), "FUSION_CONFIG": str(config)}
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, port: int) -> subprocess.Popen[bytes]:
        """Start another one."""
        command = [sys.executable, "-m", "fusion_tui.cli", "serve", "--port", str(port)]
        with (self._folder / f"said-{len(self.started)}").open("wb") as said:
            self.started.append(subprocess.Popen(command, env=self._environment, stdout=said, stderr=said))
        return self.started[-1]

    def said(self, number: int) -> str:
        """Return what the process of this number said."""
        return (self._folder / f"said-{number}").read_text()

    def holder(self) -> int | None:
        """Return the pid of the one that shows itself as the supervisor."""
        info = daemon.running(self.service.home)
        return info.identity.pid if info else None


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """A data folder with light workers of 50 steps a second, and no supervisor yet."""
    executable = light.install(tmp_path / "bin", step_s=0.02)
    service = light.open_service(tmp_path / "home", executable)
    made = Serving(service, tmp_path, executable)
    yield made
    for started in made.started:
        started.kill()
        started.wait()
    for attempt in attempts.open_attempts(service.store.read()):
        found = process.identify(attempt.pid or 0)
        if found and found.start_ticks == attempt.start_ticks:
            process.send(found, signal.SIGKILL)
    service.close()


def jobs_at(port: int, token: str) -> list[str]:
    """Return the ids of the jobs that the API at `port` tells of."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/jobs", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        listed = json.load(answer)
    return [job["id"] for job in (listed["jobs"] if isinstance(listed, dict) else listed)]


def test_the_second_reads_until_the_first_is_killed_and_then_adopts_its_worker(serving: Serving) -> None:
    ports = free_port(), free_port()
    service = serving.service
    job_id = light.submit(service, steps=1_000_000)
    first = serving.start(ports[0])
    eventually(lambda: serving.holder() == first.pid, what="the first")

    def committed() -> Attempt | None:
        return next((attempt for attempt in light.history(service, job_id) if attempt.pid), None)

    worker = eventually(committed, what="a worker")
    assert worker is not None

    second = serving.start(ports[1])
    eventually(lambda: "takes the queue over when that one ends" in serving.said(1), what="the second")
    assert f"(pid {first.pid})" in serving.said(1)
    assert jobs_at(ports[1], service.token()) == [job_id]
    assert serving.holder() == first.pid

    third = serving.start(ports[0])
    assert third.wait(60) == 1
    assert f"(pid {first.pid})" in serving.said(2)
    assert f"Port {ports[0]} on 127.0.0.1 is in use" in serving.said(2)
    assert serving.holder() == first.pid

    step = service.job(job_id).step
    first.kill()
    first.wait()
    eventually(lambda: serving.holder() == second.pid, what="the takeover")
    eventually(lambda: service.job(job_id).step > step + 5, what="what the worker did meanwhile")
    job, history = service.job(job_id), light.history(service, job_id)
    assert (job.state, job.retries, len(history)) == ("running", 0, 1)
    assert (history[0].pid, history[0].start_ticks) == (worker.pid, worker.start_ticks)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    assert serving.holder() is None
    assert process.identify(worker.pid or 0) is not None


def test_one_that_stands_by_leaves_the_holder_as_it_is_when_it_is_told_to_go(serving: Serving) -> None:
    holder = Supervisor(serving.service)
    daemon._show(serving.service.home, None)
    second = serving.start(free_port())
    eventually(lambda: "takes the queue over" in serving.said(0), what="the second")
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    assert serving.holder() == os.getpid()
    holder.close()


def contend(root: Path, executable: Path, told: int, starts: tuple[int, int], ends: tuple[int, int]) -> int:
    """Try to supervise, in a fork that begins when the pipe `starts` is closed and holds on until `ends` is."""
    pid = os.fork()
    if pid:
        return pid
    code = 2
    try:
        os.close(starts[1])
        os.close(ends[1])
        service = light.open_service(root, executable)
        os.write(told, b"r")
        os.read(starts[0], 1)
        try:
            Supervisor(service)
            code = 0
        except AlreadyRunning:
            code = 1
        os.write(told, b"d")
        os.read(ends[0], 1)
    finally:
        os._exit(code)


@pytest.mark.parametrize("pairs", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_of_two_that_start_at_once_exactly_one_has_the_lock(tmp_path: Path, pairs: int) -> None:
    executable = light.install(tmp_path / "bin")
    root = tmp_path / "home"
    light.open_service(root, executable).close()
    for _ in range(pairs):
        told, starts, ends = os.pipe(), os.pipe(), os.pipe()
        pids = [contend(root, executable, told[1], starts, ends) for _ in range(2)]
        for begin in (starts, ends):  # when both are ready, and when both have tried
            for _ in pids:
                assert os.read(told[0], 1)
            os.close(begin[1])
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
        # And in the next round the lock is free again: it went with its holder.
        assert codes == [0, 1]
        for end in (*told, starts[0], ends[0]):
            os.close(end)
