"""Processes: who is who, who gets a signal, and who outlives whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine import process
from engine.process import DeathWatch, Identity
from tests.conditions import eventually

Spawn = Callable[..., "subprocess.Popen[bytes]"]
SLEEP = ["sleep", "300"]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start processes that are ended, and reaped, with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str) -> subprocess.Popen[bytes]:
        child = process.spawn(
            argv or SLEEP,
            cwd=tmp_path,
            stdout=tmp_path / "out",
            stderr=tmp_path / "err",
            environment={"GREETING": "hello"},
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()


def identity_of(pid: int) -> Identity:
    found = process.identify(pid)
    assert found is not None
    return found


def test_a_running_process_is_recognised_again(spawn: Spawn) -> None:
    child = spawn()
    me = identity_of(child.pid)
    assert me.pid == child.pid
    assert me.boot_id == process.boot_id()
    assert process.is_alive(me)
    assert identity_of(os.getpid()) == identity_of(os.getpid())


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "another boot"}])
@pytest.mark.parametrize("group", [False, True])
def test_a_reused_pid_is_never_signalled(spawn: Spawn, change: dict[str, object], group: bool) -> None:
    child = spawn()
    earlier = replace(identity_of(child.pid), **change)
    assert not process.is_alive(earlier)
    assert not process.send(earlier, signal.SIGKILL, group=group)
    # Had that signal gone out, it would be the cause of death.
    assert process.send(identity_of(child.pid), signal.SIGTERM)
    assert child.wait(60) == -signal.SIGTERM


def test_a_zombie_counts_as_dead_and_gets_no_signal(spawn: Spawn) -> None:
    child = spawn("true")
    eventually(lambda: process.identify(child.pid) is None, within=60, what="the end of true")
    os.kill(child.pid, 0)  # still in the table: nobody has reaped it
    assert not process.send(Identity(process.boot_id(), child.pid, 1), signal.SIGTERM)


def test_a_pid_that_nobody_has_is_no_process() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert process.identify(child.pid) is None
    assert not process.send(Identity(process.boot_id(), child.pid, 1), signal.SIGTERM)


def test_a_command_with_a_name_full_of_parentheses_is_read_right(tmp_path: Path, spawn: Spawn) -> None:
    tool = tmp_path / "a) Z (1 2"
    tool.symlink_to("/bin/sleep")
    child = spawn(str(tool), "300")
    eventually(lambda: "Z (1" in Path(f"/proc/{child.pid}/comm").read_text(), within=60, what="exec")
    assert process.is_alive(identity_of(child.pid))


def test_a_signal_reaches_the_process_it_is_meant_for(spawn: Spawn) -> None:
    child, other = spawn(), spawn()
    assert process.send(identity_of(child.pid), signal.SIGTERM)
    assert child.wait(60) == -signal.SIGTERM
    assert other.poll() is None


def test_a_signal_to_the_group_ends_the_children_too(tmp_path: Path, spawn: Spawn) -> None:
    parent = spawn("sh", "-c", "sleep 300 & echo $! > child; wait")
    note = tmp_path / "child"
    pid = int(eventually(lambda: note.exists() and note.read_text().strip(), within=60, what="the child"))
    child = identity_of(pid)
    assert process.send(identity_of(parent.pid), signal.SIGKILL, group=True)
    assert parent.wait(60) == -signal.SIGKILL
    eventually(lambda: not process.is_alive(child), within=60, what="the child's end")


def orphan(tmp_path: Path, spawn: Spawn) -> tuple[Identity, Identity]:
    """Return a worker that was killed, and the process that it left behind."""
    parent = spawn("sh", "-c", "sleep 300 & echo $! > child; wait")
    note = tmp_path / "child"
    pid = int(eventually(lambda: note.exists() and note.read_text().strip(), within=60, what="the child"))
    leader, child = identity_of(parent.pid), identity_of(pid)
    assert process.send(leader, signal.SIGKILL)
    assert parent.wait(60) == -signal.SIGKILL
    assert process.is_alive(child)
    return leader, child


def test_what_a_dead_worker_left_behind_is_ended(tmp_path: Path, spawn: Spawn) -> None:
    leader, child = orphan(tmp_path, spawn)
    other = spawn()
    assert process.end_left_behind(leader) == 1
    eventually(lambda: not process.is_alive(child), within=60, what="the child's end")
    assert process.end_left_behind(leader) == 0
    assert other.poll() is None


@pytest.mark.parametrize("change", [{"boot_id": "another boot"}, {"pid": os.getpid()}])
def test_what_another_process_or_an_earlier_boot_left_behind_is_left_alone(
    tmp_path: Path, spawn: Spawn, change: dict[str, object]
) -> None:
    leader, child = orphan(tmp_path, spawn)
    assert process.end_left_behind(replace(leader, **change)) == 0
    assert process.is_alive(child)
    assert process.end_left_behind(leader) == 1


def test_a_process_that_was_stopped_is_seen_to_be(spawn: Spawn) -> None:
    child = spawn()
    me = identity_of(child.pid)
    assert not process.is_stopped(me)
    assert process.send(me, signal.SIGSTOP, group=True)
    eventually(lambda: process.is_stopped(me), within=60, what="the stop")
    assert not process.is_stopped(replace(me, start_ticks=1))


def test_a_group_is_reached_on_a_kernel_that_knows_no_signal_to_a_group_by_descriptor(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.process.PIDFD_SIGNAL_PROCESS_GROUP", 1 << 20)  # no flag of any kernel
    child = spawn()
    assert process.send(identity_of(child.pid), signal.SIGTERM, group=True)
    assert child.wait(60) == -signal.SIGTERM


def test_a_spawned_process_has_its_own_session_its_files_and_nothing_else_of_ours(tmp_path: Path, spawn: Spawn) -> None:
    leak = os.open(tmp_path / "leak", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(leak, True)
    look = "import os,sys; print(os.getsid(0) == os.getpid(), sorted(map(int, os.listdir('/proc/self/fd')))[:-1],"
    look += " os.environ['GREETING'], os.readlink('/proc/self/fd/0')); sys.stderr.write('oops')"
    child = spawn(sys.executable, "-c", look)
    assert child.wait(60) == 0
    os.close(leak)
    assert (tmp_path / "out").read_text() == "True [0, 1, 2] hello /dev/null\n"
    assert (tmp_path / "err").read_text() == "oops"


def test_a_spawned_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from engine import process; here = Path(sys.argv[1]);"
        "child = process.spawn(['sleep', '300'], cwd=here, stdout=here / 'o', stderr=here / 'e', environment={});"
        "(here / 'pid.new').write_text(str(child.pid)); (here / 'pid.new').rename(here / 'pid'); time.sleep(300)"
    )
    middle = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], start_new_session=True)
    note = tmp_path / "pid"
    eventually(note.exists, within=60, what="the grandchild")
    grandchild = identity_of(int(note.read_text()))
    os.killpg(middle.pid, signal.SIGHUP)
    os.killpg(middle.pid, signal.SIGKILL)
    middle.wait()
    assert process.is_alive(grandchild)
    assert process.send(grandchild, signal.SIGKILL)
    eventually(lambda: not process.is_alive(grandchild), within=60, what="the grandchild's end")


def test_a_watch_ends_its_wait_when_a_process_ends(spawn: Spawn) -> None:
    child = spawn("sleep", "0.2")
    watch = DeathWatch()
    watch.add(child.pid)
    watch.add(child.pid)
    begun = time.monotonic()
    watch.wait(60)
    assert time.monotonic() - begun < 30
    watch.discard(child.pid)
    watch.discard(child.pid)


def test_a_tool_that_fails_is_told_by_its_last_words() -> None:
    with pytest.raises(RuntimeError, match=r"No module named engine\.nonesuch"):
        process.run_tool("engine.nonesuch", [])


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a tool and return its module's name."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(script: str) -> str:
        (tmp_path / "some_tool.py").write_text(f"import sys, time\nfrom pathlib import Path\n{script}\n")
        return "some_tool"

    return write


def test_a_tool_tells_how_far_it_is_and_answers_at_length(tool: Callable[[str], str]) -> None:
    told: list[str] = []
    script = "print('progress: half', file=sys.stderr); print('a warning', file=sys.stderr); print('x' * 300_000)"
    assert process.run_tool(tool(script), [], tell=told.append) == "x" * 300_000 + "\n"
    assert told == ["half"]


def test_the_last_words_of_a_tool_are_none_of_its_progress(tool: Callable[[str], str]) -> None:
    script = "print('it broke', file=sys.stderr); print('progress: half', file=sys.stderr); sys.exit(1)"
    with pytest.raises(RuntimeError, match=r"^it broke$"):
        process.run_tool(tool(script), [])


def test_a_tool_that_is_stopped_is_gone(tool: Callable[[str], str], tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"import os; Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(300)"
    with pytest.raises(RuntimeError, match="it was stopped"):
        process.run_tool(tool(script), [], stopped=lambda: note.exists() and bool(note.read_text()))
    assert process.identify(int(note.read_text())) is None


def test_a_spawned_process_does_not_die_of_a_request_to_save_and_this_one_listens_as_before(spawn: Spawn) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    child = spawn()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    me = identity_of(child.pid)
    assert process.send(me, process.SAVE)
    assert process.send(me, signal.SIGCONT)  # delivered after the other would have been
    status = Path(f"/proc/{child.pid}/status").read_text()
    assert f"ShdPnd:\t{1 << (process.SAVE - 1):016x}" in status
    assert process.is_alive(me)
    assert not process.listens(me, process.SAVE)


def test_who_has_a_handler_is_seen_to_listen_until_it_is_gone(tmp_path: Path, spawn: Spawn) -> None:
    ready = tmp_path / "ready"
    code = f"import signal, time; signal.signal(10, print); open({str(ready)!r}, 'w'); time.sleep(300)"
    child = spawn(sys.executable, "-c", code)
    me = identity_of(child.pid)
    eventually(ready.exists, what="the handler")
    assert process.listens(me, signal.SIGUSR1)
    assert not process.listens(me, signal.SIGUSR2)
    assert not process.listens(replace(me, start_ticks=me.start_ticks + 1), signal.SIGUSR1)
    child.kill()
    child.wait()
    assert not process.listens(me, signal.SIGUSR1)
