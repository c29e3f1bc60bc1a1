"""The background process: supervisor and HTTP API around one service, and how the faces find or start it.

The rule: this is the only module that puts the supervisor and the API together. Run: python -m fusion_tui.daemon
"""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine import atomic, process
from engine.errors import EngineError
from engine.paths import Home
from engine.running.ballast import Ballast
from engine.settings import settings_file

if TYPE_CHECKING:
    from engine.running.supervisor import Supervisor
    from engine.service import Service
    from fusion_tui.api.server import ApiServer

START_SECONDS = 20.0
ALREADY_RUNNING = 3  # exit code
# A supervisor that an app started leaves this long after the last app closed with nothing to do.
IDLE_EXIT_SECONDS = 600.0
STAND_BY_SECONDS = 1.0  # between two tries of a lock that another supervisor holds

log = logging.getLogger("fusion.daemon")


@dataclass(frozen=True)
class SupervisorInfo:
    """A running supervisor: its process and the address of its API (None where it serves none)."""

    identity: process.Identity
    url: str | None


def running(home: Home) -> SupervisorInfo | None:
    """Return the supervisor of this data folder, if one runs."""
    try:
        fields = json.loads(home.supervisor_info.read_text())
        identity = process.Identity(fields["boot_id"], fields["pid"], fields["start_ticks"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return SupervisorInfo(identity, fields.get("url")) if process.is_alive(identity) else None


def ensure_running(home: Home) -> SupervisorInfo:
    """Return the running supervisor, starting one in the background where there is none.

    Raises EngineError with the last line of its log when it does not come up in 20 s.
    """
    known = running(home)
    if known:
        return known
    return start_in_background(home, ["--idle-exit", str(IDLE_EXIT_SECONDS), "--api-optional"])


def start_in_background(home: Home, arguments: list[str]) -> SupervisorInfo:
    """Start a supervisor that outlives this process. Raises EngineError when it does not come up."""
    home.make()
    child = _spawn(home, arguments)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        info = running(home)
        if info:
            return info
        code = child.poll()
        if code == ALREADY_RUNNING:
            # The holder of the lock is just coming up, or just leaving: then one is wanted after it.
            time.sleep(0.2)
            child = child if running(home) else _spawn(home, arguments)
        elif code is not None:
            break
        time.sleep(0.05)
    raise EngineError(f"The supervisor did not start: {_last_line(home.supervisor_log)} (log: {home.supervisor_log})")


def _spawn(home: Home, arguments: list[str]) -> subprocess.Popen[bytes]:
    return process.spawn(
        [sys.executable, "-m", "fusion_tui.daemon", *arguments],
        cwd=home.root,
        stdout=home.supervisor_log,
        stderr=home.supervisor_log,
        environment={
            "FUSION_HOME": str(home.root),
            "FUSION_CONFIG": str(settings_file()),
            "PYTHONUNBUFFERED": "1",
        },
    )


def _last_line(path: Path) -> str:
    try:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1] if lines else "it said nothing"


def stop_running(home: Home, seconds: float = START_SECONDS) -> bool:
    """Ask the running supervisor to leave and wait for it; workers go on. Returns False when it stays."""
    info = running(home)
    if info is None:
        return True
    process.send(info.identity, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while process.is_alive(info.identity):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class IdleExit:
    """Says when nobody needs the supervisor any more: no app open, nothing queued or running, for some time."""

    def __init__(self, home: Home, busy: Callable[[], bool], seconds: float) -> None:
        self._home = home
        self._busy = busy
        self._seconds = seconds
        self._needed_at = time.monotonic()

    def _app_open(self) -> bool:
        """Every open app holds the lock shared; the system frees it however the app ends."""
        try:
            with self._home.app_lock.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held; or not to be looked at, where one may be open
            return True
        return False

    def busy(self) -> bool:
        """Say whether there is anything to do. Where nobody can tell (the store is busy, or fails), there is."""
        try:
            return self._busy()
        except Exception:  # whatever it was: the watch must outlive it
            log.debug("Whether there is anything to do could not be told.", exc_info=True)
            return True

    def due(self) -> bool:
        """Return True when the time is over."""
        if self._app_open() or self.busy():
            self._needed_at = time.monotonic()
        return time.monotonic() - self._needed_at > self._seconds


def serve(
    service: Service,
    *,
    host: str | None = None,
    port: int | None = None,
    idle_exit: float | None = None,
    api_optional: bool = False,
    stand_by: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> None:
    """Run supervisor and API until TERM or INT (or idleness). Workers outlive it.

    Where another supervisor holds the queue, `stand_by` serves the API beside it and takes the queue over at its end.
    Raises AlreadyRunning where not told to stand by; EngineError when the port is taken and the API is not optional,
    or the data folder cannot be written.
    """
    from engine.running.supervisor import AlreadyRunning

    if service.read_only:
        raise EngineError(
            f"The data folder {service.home.root} is open for reading only: no run can be carried out there."
        )
    service.token()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervisor, holder = _try_lock(service)
    if not supervisor and not stand_by:
        raise AlreadyRunning(holder)
    server: ApiServer | None = None
    try:
        if supervisor:
            _check_after_a_crash(service)
        server = _start_api(service, host, port, optional=api_optional, beside=holder)
        # What is loaded stays: to look through all of it for garbage keeps every request waiting, for 0.1 s or more.
        gc.freeze()
        url = server.url if server else None
        if not supervisor:
            announce(f"{holder} This one serves the API at {url} and takes the queue over when that one ends.")
            supervisor = _await_lock(service, stop)
            if not supervisor:
                return
            announce(f"That supervisor ended: pid {os.getpid()} takes over.")
            _check_after_a_crash(service)
        announce(f"Supervisor for {service.home.root}; API at {url or 'no address (port in use)'}")
        _carry_out(service.home, supervisor, stop, url, idle_exit)
    finally:
        if server:
            server.stop()
        if supervisor:
            supervisor.close()


def _try_lock(service: Service) -> tuple[Supervisor | None, str]:
    """Return the supervisor of this process, or None and words about the one that runs."""
    from engine.running.supervisor import AlreadyRunning, Supervisor

    try:
        return Supervisor(service), ""
    except AlreadyRunning as error:
        return None, str(error)


def _await_lock(service: Service, stop: threading.Event) -> Supervisor | None:
    """Try the lock every second until it is had, or until told to stop."""
    while not stop.wait(STAND_BY_SECONDS):
        supervisor, _ = _try_lock(service)
        if supervisor:
            return supervisor
    return None


def _check_after_a_crash(service: Service) -> None:
    # Only with the lock held: before, the file may be that of a supervisor that is well.
    if service.home.supervisor_info.exists():
        log.info("The supervisor before did not end in order: checking the store.")
        service.store.check()


def _carry_out(
    home: Home, supervisor: Supervisor, told: threading.Event, url: str | None, idle_exit: float | None
) -> None:
    """Carry out the queue until `told` to stop, or until nobody has needed it for some time."""
    while True:
        # Not `told`, which stands for good: that nobody needs it may be taken back below.
        leave = told if idle_exit is None else threading.Event()
        watch = IdleExit(home, supervisor.busy, idle_exit or 0.0)
        _show(home, url)
        # From here on only: what an unclean stop left there is its one sign, and goes when the store was checked.
        try:
            if leave is not told:
                threading.Thread(target=_leave_when_idle, args=(watch, told, leave), daemon=True).start()
            supervisor.run(leave)
        finally:
            home.supervisor_info.unlink(missing_ok=True)
        # Who submitted before the line above saw a supervisor and started none: its job keeps this one here.
        if told.is_set() or not watch.busy():
            return


def _start_api(
    service: Service, host: str | None, port: int | None, *, optional: bool, beside: str = ""
) -> ApiServer | None:
    """Start the API. `beside` is said where it cannot be: another supervisor, who may well have the port."""
    from fusion_tui.api.server import ApiServer

    server = ApiServer(service, host or service.settings.host, port or service.settings.port)
    try:
        server.start()
    except EngineError as error:
        if not optional:
            raise EngineError(f"{beside} {error}".strip()) from None
        log.warning("%s The queue is carried out without the API.", error)
        return None
    return server


def _show(home: Home, url: str | None) -> None:
    """Write down who carries out the queue, for the faces to find."""
    identity = process.identify(os.getpid())
    if identity is None:
        raise EngineError("This process cannot be identified; is /proc mounted?")
    shown = {**asdict(identity), "url": url}
    try:
        atomic.write_json(home.supervisor_info, shown)
    except OSError as error:
        # A supervisor comes up on a full disk too: it is the one that holds the runs until there is room.
        if not (atomic.is_full(error) and Ballast(home.ballast).give_up()):
            raise
        atomic.write_json(home.supervisor_info, shown)


def _leave_when_idle(watch: IdleExit, told: threading.Event, leave: threading.Event) -> None:
    while not told.wait(1.0):
        if watch.due():
            log.info("No app open and nothing to do: leaving.")
            break
    leave.set()


@click.command()
@click.option("--host")
@click.option("--port", type=int)
@click.option("--idle-exit", type=float)
@click.option("--api-optional", is_flag=True)
def main(host: str | None, port: int | None, idle_exit: float | None, api_optional: bool) -> None:
    """Run supervisor and API for the data folder that FUSION_HOME names."""
    from engine.running.supervisor import AlreadyRunning
    from engine.service import Service
    from store import StoreError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve(
            Service(),
            host=host,
            port=port,
            idle_exit=idle_exit,
            api_optional=api_optional,
            announce=lambda line: log.info("%s", line),
        )
    except AlreadyRunning as error:
        print(error, file=sys.stderr)
        sys.exit(ALREADY_RUNNING)
    except (EngineError, StoreError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
