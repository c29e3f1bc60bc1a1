"""What doctor finds in the background: supervisor, port, workers, and what a logout would end."""

from __future__ import annotations

import fcntl
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

import pytest

from engine import atomic, process
from engine.doctor import background
from engine.doctor.finding import Machine
from engine.paths import Home
from engine.service import Service
from store.jobs import Job
from store.library import Database
from tests.conditions import eventually
from tests.engine.doctor.conftest import (
    DEAD,
    claim,
    myself,
    of,
    supervise,
    trouble,
)


def test_an_open_attempt_without_its_process_is_told(machine: Machine, service: Service, job: Job) -> None:
    claim(service, job, DEAD)
    found = trouble(background.workers, machine)
    assert f"its worker (pid {DEAD.pid}) is gone" in found.seen
    assert found.remedy == "Go on: fusion-tui serve --detach"


def test_a_worker_that_lives_is_no_finding(machine: Machine, service: Service, job: Job) -> None:
    claim(service, job, myself())
    [found] = of(background.workers, machine)
    assert (found.level, found.seen) == ("ok", "1 at work for the 1 runs that should have one")


def test_a_worker_that_no_open_attempt_knows_is_told_by_its_number(machine: Machine, job: Job) -> None:
    directory = machine.home.attempt(job.id, 1)
    directory.mkdir(parents=True)
    stray = subprocess.Popen([sys.executable, "-m", "engine.trainer", str(directory)])
    try:
        eventually(lambda: len(of(background.workers, machine)) > 1)
        found = trouble(background.workers, machine)
        assert (found.level, found.remedy.endswith(f"kill {stray.pid}")) == ("error", True)
        elsewhere = Machine(Home(machine.home.root.parent / "another"))
        assert [finding.level for finding in of(background.workers, elsewhere)] == ["ok"]
    finally:
        stray.kill()
        stray.wait()


def test_a_worker_that_ends_between_the_looks_at_processes_and_store_is_no_finding(machine: Machine, job: Job) -> None:
    directory = machine.home.attempt(job.id, 1)
    directory.mkdir(parents=True)
    # Its command line is what counts; the directory is where the worker would look for its task.
    ending = subprocess.Popen([sys.executable, "-m", "engine.trainer", str(directory)], stdin=subprocess.PIPE)
    ending.send_signal(signal.SIGSTOP)  # so that it is there for as long as the test wants

    class Ending(Machine):
        """A machine whose worker ends just before the store is read."""

        @contextmanager
        def store(self) -> Iterator[Database | None]:
            ending.kill()
            ending.wait()
            with super().store() as opened:
                yield opened

    try:
        eventually(lambda: background._worker_processes(machine.home.root / "runs"), what="the worker")
        assert [finding.level for finding in of(background.workers, Ending(machine.home))] == ["ok"]
    finally:
        ending.kill()
        ending.wait()


def test_a_supervisor_that_was_killed_leaves_its_note_and_that_is_told(machine: Machine) -> None:
    supervise(machine, DEAD)
    found = trouble(background.supervisor, machine)
    assert str(DEAD.pid) in found.seen
    assert "serve --detach" in found.remedy


def test_a_supervisor_that_somebody_stopped_is_told_with_how_to_let_it_go_on(machine: Machine) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        identity = process.identify(child.pid)
        assert identity
        supervise(machine, identity)
        child.send_signal(signal.SIGSTOP)
        eventually(lambda: process.is_stopped(identity))
        assert trouble(background.supervisor, machine).remedy == f"kill -CONT {child.pid}"
    finally:
        child.kill()
        child.wait()


def test_a_lock_without_a_note_is_told_with_its_holder(machine: Machine) -> None:
    with machine.home.lock.open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "4711 holds the lock" in trouble(background.supervisor, machine).seen
    assert of(background.supervisor, machine)[0].level == "ok"


def test_runs_that_wait_for_no_supervisor_are_told(machine: Machine, job: Job) -> None:
    assert "1 runs wait" in trouble(background.supervisor, machine).seen


def test_an_api_that_does_not_answer_is_told(machine: Machine) -> None:
    url = f"http://127.0.0.1:{machine.settings.port}"
    atomic.write_json(machine.home.supervisor_info, {**asdict(myself()), "url": url})
    assert "does not answer" in trouble(background.supervisor, machine).seen


def serve(answer: bytes) -> socket.socket:
    """Listen as the API would, and give every caller the same answer."""
    server = socket.create_server(("127.0.0.1", 0))

    def answered() -> None:
        with suppress(OSError):
            while True:
                caller, _ = server.accept()
                with caller:
                    caller.recv(4096)
                    caller.sendall(answer)

    threading.Thread(target=answered, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n{}", "ok"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "warning"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{", "warning"),
    ],
    ids=["the API", "no HTTP", "cut short"],
)
def test_the_api_is_asked_directly_and_what_answers_as_it_does_not_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, answer: bytes, level: str
) -> None:
    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(answer) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        atomic.write_json(machine.home.supervisor_info, {**asdict(myself()), "url": url})
        found = of(background.supervisor, machine)[-1]
        assert (found.name, found.level, "answers" in found.seen) == ("api", level, level == "ok")


def test_a_port_in_use_is_told(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", machine.settings.port)):
        assert "is in use" in trouble(background.port, machine).seen
    assert of(background.port, machine)[0].level == "ok"


SESSION, SERVICE = "0::/user.slice/user-1.slice/session-3.scope", "0::/user.slice/user-1.slice/user@1.service/app.slice"


@pytest.mark.parametrize(
    ("files", "cgroup", "lingers", "remedy"),
    [
        ({"etc/systemd/logind.conf": "[Login]\nKillUserProcesses=yes\n"}, SESSION, False, "systemd-run --user"),
        ({"etc/systemd/logind.conf": "[Login]\nKillUserProcesses=yes\n"}, SESSION, True, "systemd-run --user"),
        ({"etc/systemd/logind.conf": "[Login]\nKillUserProcesses=yes\n"}, SERVICE, True, ""),
        ({"etc/systemd/logind.conf": "[Login]\n#KillUserProcesses=no\n"}, SESSION, False, ""),
        ({"usr/lib/systemd/logind.conf": "[Login]\n#KillUserProcesses=yes\n"}, SESSION, False, "systemd-run --user"),
        (
            {
                "etc/systemd/logind.conf": "[Login]\nKillUserProcesses=no\n",
                "etc/systemd/logind.conf.d/50-kill.conf": "[Login]\nKillUserProcesses = true\n",
            },
            SESSION,
            False,
            "systemd-run --user",
        ),
        (
            {
                "usr/lib/systemd/logind.conf.d/50-kill.conf": "[Login]\nKillUserProcesses=yes\n",
                "etc/systemd/logind.conf.d/50-kill.conf": "[Login]\n",
            },
            SESSION,
            False,
            "",
        ),
        (
            {"etc/systemd/logind.conf": "[Login]\nKillUserProcesses=yes\nKillExcludeUsers=root ada\n"},
            SESSION,
            False,
            "",
        ),
        ({"etc/systemd/logind.conf": "[Login]\nKillUserProcesses=yes\nKillOnlyUsers=bob\n"}, SESSION, False, ""),
        ({}, SERVICE, False, "loginctl enable-linger ada"),
        ({}, SERVICE, True, ""),
    ],
)
def test_a_logout_that_would_end_runs_is_told(
    machine: Machine, files: dict[str, str], cgroup: str, lingers: bool, remedy: str
) -> None:
    everything = {**files, "run/systemd/system/.keep": "", "proc/self/cgroup": cgroup}
    if lingers:
        everything["var/lib/systemd/linger/ada"] = ""
    for name, text in everything.items():
        (machine.root / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / name).write_text(text)
    [found] = of(background.logind, machine)
    assert (found.level == "warning") == bool(remedy)
    assert remedy in found.remedy
