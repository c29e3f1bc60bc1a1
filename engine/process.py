"""Starting, recognising and signalling processes.

The rule: every spawn and every signal in the project happens here, and a signal goes only to a process whose
identity (boot, pid, start time) was read again just before.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_PROC = Path("/proc")
TELLS = "progress: "  # how a tool begins a line on stderr that tells how far it is
TOOL_POLL_S = 0.2
PIDFD_SIGNAL_PROCESS_GROUP = 4  # a flag of Linux 6.9
SAVE = signal.SIGUSR1  # asks a worker for a checkpoint


@dataclass(frozen=True)
class Identity:
    """A process that no later one can be mistaken for: `start_ticks` is its start in clock ticks since boot."""

    boot_id: str
    pid: int
    start_ticks: int


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return a text that is different after each boot of this machine."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    # macOS. (The time of the boot is no such text: it moves when the clock is set.)
    asked = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False)  # noqa: S607
    return asked.stdout.strip() or "unknown"


def _stat(pid: int | str) -> list[str]:
    """Return what the kernel tells of `pid`: state, parent, group, session … start ticks (19). Raises OSError,
    ValueError."""
    stat = (_PROC / str(pid) / "stat").read_text()
    # The command's name, in parentheses, may hold anything: the fields begin after the last one.
    return stat[stat.rindex(")") + 2 :].split()


def _start_ticks(pid: int) -> int | None:
    """Return when `pid` started, or None where it does not run (a zombie does not)."""
    try:
        fields = _stat(pid)
        return None if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        if _PROC.joinpath("self/stat").exists():
            return None
    import psutil  # macOS

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 100)
    except psutil.Error:
        return None


def identify(pid: int) -> Identity | None:
    """Return the identity of a running process, or None."""
    ticks = _start_ticks(pid)
    return None if ticks is None else Identity(boot_id(), pid, ticks)


def is_alive(identity: Identity) -> bool:
    """Say whether this very process still runs."""
    return identify(identity.pid) == identity


def is_stopped(identity: Identity) -> bool:
    """Say whether this process stands still because someone stopped it (SIGSTOP, a debugger)."""
    try:
        fields = _stat(identity.pid)
        return fields[0] in ("T", "t") and int(fields[19]) == identity.start_ticks
    except (OSError, ValueError, IndexError):
        if _PROC.joinpath("self/stat").exists():
            return False
    import psutil  # macOS

    try:
        return is_alive(identity) and psutil.Process(identity.pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def spawn(
    argv: Sequence[str], *, cwd: Path, stdout: Path, stderr: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one: own session, no terminal, files for output, no inherited descriptor.

    It begins with SAVE blocked, and so does not die of it before it listens.
    """
    with stdout.open("ab") as out, stderr.open("ab") as err, _blocked(SAVE):
        return subprocess.Popen(
            list(argv),
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            close_fds=True,
        )


@contextmanager
def _blocked(number: int) -> Iterator[None]:
    """Block a signal in this thread, and so in what it spawns, for that is inherited."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listens(identity: Identity, number: int) -> bool:
    """Say whether this very process lives and has a handler for a signal, which would else end it; where the system
    does not tell, that it lives."""
    try:
        lines = (_PROC / str(identity.pid) / "status").read_text().splitlines()
        caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    except (OSError, IndexError, StopIteration):
        return not _PROC.joinpath("self/stat").exists() and is_alive(identity)
    return bool(int(caught, 16) >> (number - 1) & 1) and is_alive(identity)


def send(identity: Identity, number: int, *, group: bool = False) -> bool:
    """Signal a process, or with `group` its whole process group. Returns False when it is gone."""
    try:
        descriptor = os.pidfd_open(identity.pid) if hasattr(os, "pidfd_open") else -1
    except ProcessLookupError:
        return False
    except OSError:
        descriptor = -1  # an old kernel or a strict sandbox: the look below has to do
    try:
        # The descriptor was had before this look, so it means no later process with that number.
        if not is_alive(identity):
            return False
        if group:
            _send_group(descriptor, identity.pid, number)
        elif descriptor >= 0:
            signal.pidfd_send_signal(descriptor, number)
        else:
            os.kill(identity.pid, number)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _send_group(descriptor: int, pid: int, number: int) -> None:
    if descriptor >= 0:
        try:
            signal.pidfd_send_signal(descriptor, number, None, PIDFD_SIGNAL_PROCESS_GROUP)
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    os.killpg(pid, number)  # a kernel before 6.9: the look just before has to do


def end_left_behind(leader: Identity) -> int:
    """End what a dead leader of a session left running in it; return how many processes those were.

    Only for a leader that was seen alive not long ago: a number is free again once its session is empty, and a later
    leader of that number may have left something running too.
    """
    if leader.boot_id != boot_id() or _start_ticks(leader.pid) is not None:
        return 0
    ended = 0
    for entry in _PROC.glob("[0-9]*"):
        try:
            state, _, _, session, *_ = _stat(entry.name)
        except (OSError, ValueError):
            continue
        found = identify(int(entry.name)) if int(session) == leader.pid and state not in ("Z", "X") else None
        ended += found is not None and found.start_ticks >= leader.start_ticks and send(found, signal.SIGKILL)
    return ended


class DeathWatch:
    """Waits until one of several processes ends, without polling where the system has pidfds."""

    def __init__(self) -> None:
        self._descriptors: dict[int, int] = {}

    def add(self, pid: int) -> None:
        """Watch `pid`; one that is gone already is simply not watched."""
        if pid not in self._descriptors and hasattr(os, "pidfd_open"):
            try:
                self._descriptors[pid] = os.pidfd_open(pid)
            except OSError:
                pass

    def discard(self, pid: int) -> None:
        """Watch `pid` no longer."""
        descriptor = self._descriptors.pop(pid, -1)
        if descriptor >= 0:
            os.close(descriptor)

    def wait(self, seconds: float) -> None:
        """Return when a watched process ended or after `seconds`."""
        if not self._descriptors:
            time.sleep(seconds)
            return
        poll = select.poll()
        for descriptor in self._descriptors.values():
            poll.register(descriptor, select.POLLIN)
        poll.poll(seconds * 1000)


def training_environment(workers: int = 1) -> dict[str, str]:
    """Return what a training process needs in its environment beside what is there.

    Two torch processes that each take every core slow each other many times over: OpenMP threads spin.
    """
    threads = max(1, (os.cpu_count() or 1) // max(1, workers))
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "OMP_WAIT_POLICY": "PASSIVE",
        # So that torch counts the cards as NVML does.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def run_tool(
    module: str,
    arguments: Sequence[str],
    *,
    python: str = sys.executable,
    tell: Callable[[str], object] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    """Run one of the trainer's tools to its end and return its output.

    `tell` hears what the tool says of its progress; `stopped` is asked several times a second whether to end it.
    Raises RuntimeError with the tool's last words, or when it was stopped.
    """
    words = [b""]
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            [python, "-m", module, *arguments],
            env={**os.environ, **training_environment()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as child,
    ):
        assert child.stderr is not None
        try:
            while True:
                if stopped():
                    raise RuntimeError("it was stopped")
                if not select.select([child.stderr], [], [], TOOL_POLL_S)[0]:
                    continue
                piece = os.read(child.stderr.fileno(), 65536)
                if not piece:
                    break
                *lines, words[-1] = (words[-1] + piece).split(b"\n")
                for line in lines:
                    if line.startswith(TELLS.encode()):
                        tell(line.decode(errors="replace").removeprefix(TELLS))
                    elif line.strip():
                        words.insert(-1, line)
        except BaseException:
            # Not reaped yet, so that the number can be no other process's.
            os.killpg(child.pid, signal.SIGKILL)
            raise
        code = child.wait()
        output.seek(0)
        said = output.read().decode()
    if code:
        last = [word.decode(errors="replace") for word in words if word.strip()]
        raise RuntimeError(last[-1] if last else f"{module} ended with {code}")
    return said
