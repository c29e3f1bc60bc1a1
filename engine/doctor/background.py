"""What works in the background: supervisor, API port, workers; and whether a logout would end them."""

from __future__ import annotations

import errno
import fcntl
import http.client
import json
import socket
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine import process
from engine.doctor.finding import Finding, Machine
from engine.process import Identity
from engine.running import evidence
from store import attempts, states
from store import jobs as job_rows

START = "fusion-tui serve --detach"
ANSWER_SECONDS = 2.0


def supervisor(machine: Machine) -> Iterator[Finding]:
    """Look who carries out the queue, and whether that is needed."""
    holder = evidence.supervisor(machine.home)
    if holder and process.is_stopped(holder):
        words = f"process {holder.pid} supervises, but someone stopped it"
        yield Finding("supervisor", "error", words, f"kill -CONT {holder.pid}")
        return
    if holder:
        yield Finding("supervisor", "ok", f"process {holder.pid} carries out the queue")
        yield _api(_told(machine).get("url"))
        return
    told = _told(machine)
    if _is_held(machine.home.lock):
        pid = machine.home.lock.read_text().strip() or "unknown"
        words = f"process {pid} holds the lock and has not told of itself; it is coming up, or it stands still"
        yield Finding("supervisor", "warning", words, "Look again in a moment; then at supervisor.log.")
        return
    if told:
        words = f"supervisor.json tells of process {told.get('pid')}, which is gone: killed, or the machine restarted"
        yield Finding("supervisor", "warning", words, f"{START} starts one that goes on from there; nothing is lost.")
        return
    waiting = _unfinished(machine)
    words = f"none runs, and {waiting} runs wait for one" if waiting else "none runs; the app starts one"
    yield Finding("supervisor", "warning" if waiting else "ok", words, START if waiting else "")


def _told(machine: Machine) -> dict[str, object]:
    try:
        fields = json.loads(machine.home.supervisor_info.read_text())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _is_held(lock: Path) -> bool:
    """Say whether a process holds a lock, by taking it shared for a moment: a reader's lock, given back at once."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


def _unfinished(machine: Machine) -> int:
    with machine.store() as db:
        counts = job_rows.count(db) if db is not None else {}
    return sum(amount for state, amount in counts.items() if state not in states.FINISHED)


def _api(url: object) -> Finding:
    if not isinstance(url, str):
        remedy = "Another program has the port, see below: set `port` in the settings, or FUSION_PORT."
        return Finding("api", "warning", "the supervisor serves no API", remedy)
    try:
        # Straight to it: a proxy of the environment cannot reach this machine's own address.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{url}/health", timeout=ANSWER_SECONDS) as answer:
            json.load(answer)
    except (OSError, ValueError, http.client.HTTPException) as error:
        remedy = "Look at supervisor.log; a new supervisor takes over running runs: kill it, then start one."
        return Finding("api", "warning", f"{url} does not answer ({error})", remedy)
    return Finding("api", "ok", f"{url} answers")


def port(machine: Machine) -> Iterator[Finding]:
    """Look whether the port of the API is free, or whose it is."""
    host, number = machine.settings.host, machine.settings.port
    if str(_told(machine).get("url", "")).endswith(f":{number}") and evidence.supervisor(machine.home):
        yield Finding("port", "ok", f"{number} is the supervisor's")
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            why = f"is in use{_listener(number)}" if error.errno == errno.EADDRINUSE else f"fails: {error.strerror}"
            remedy = "Set another `port` in the settings, or FUSION_PORT; the queue works without the API meanwhile."
            yield Finding("port", "warning", f"{host}:{number} {why}", remedy)
            return
    yield Finding("port", "ok", f"{host}:{number} is free")


def _listener(number: int) -> str:
    """Return whose a port is, where this user may see it."""
    import psutil

    try:
        found = [one.pid for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == number and one.pid]
        return f" by {psutil.Process(found[0]).name()} (pid {found[0]})" if found else ""
    except psutil.Error:
        return ""


# Workers ----------------------------------------------------------------------------------------------------------


def _worker_processes(runs: Path) -> dict[Identity, Path]:
    """Return the live workers of a data folder, by their command lines: process and attempt's directory."""
    import psutil

    found = {}
    for one in psutil.process_iter(["cmdline", "status"]):
        words = one.info["cmdline"] or []
        if one.info["status"] == psutil.STATUS_ZOMBIE or words[1:3] != ["-m", "engine.trainer"] or len(words) < 4:
            continue
        identity = process.identify(one.pid) if Path(words[3]).is_relative_to(runs) else None
        if identity:
            found[identity] = Path(words[3])
    return found


def workers(machine: Machine) -> Iterator[Finding]:
    """Look for runs without their worker, and for workers without a run."""
    running = _worker_processes(machine.home.root / "runs")
    supervised = evidence.supervisor(machine.home) is not None
    with machine.store() as db:
        claimed = attempts.open_attempts(db) if db is not None else []
        names = {claim.job_id: job_rows.get(db, claim.job_id).name for claim in claimed} if db is not None else {}
    sound = 0
    for claim in claimed:
        identity = evidence.worker(claim)
        if identity is not None and process.is_alive(identity):
            sound += 1
        elif identity is not None or not supervised:
            words = f"{names[claim.job_id]}: its worker (pid {claim.pid or 'not known'}) is gone"
            remedy = "Look again: the supervisor should go on with it at once." if supervised else f"Go on: {START}"
            yield Finding("workers", "warning", words, remedy)
    for worker, directory in running.items():
        owners = [claim for claim in claimed if claim.directory == str(directory)]
        if any(claim.pid in (None, worker.pid) for claim in owners):
            continue
        # One that ended before the store was read has its attempt closed by now, and rightly so.
        if process.is_alive(worker):
            words = f"process {worker.pid} works in {directory}, which no open attempt knows"
            yield Finding("workers", "error", words, f"It changes no run, but holds memory: kill {worker.pid}")
    yield Finding("workers", "ok", f"{sound} at work for the {len(claimed)} runs that should have one")


# Logout -----------------------------------------------------------------------------------------------------------


def _configured(root: Path) -> dict[str, str]:
    """Return logind's settings as systemd reads them: one main file, then drop-ins by name; /etc hides /run hides /usr.

    A main file as shipped tells the built-in defaults in its comments.
    """
    folders = [root / name for name in ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")]
    main = next((path for folder in folders if (path := folder / "logind.conf").is_file()), None)
    named: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob("logind.conf.d/*.conf"):
            named.setdefault(path.name, path)
    lines = _lines(main, comments=True) if main else []
    return dict([*lines, *(pair for name in sorted(named) for pair in _lines(named[name]))])


def _lines(path: Path, *, comments: bool = False) -> Iterable[tuple[str, str]]:
    """Return a file's assignments; its commented ones, where wanted, stand before, for they are the defaults."""
    text = path.read_text(errors="replace").splitlines()
    told = [line.strip("# \t") for line in text if line.startswith("#")] if comments else []
    for line in [*told, *(line.strip() for line in text if not line.lstrip().startswith(("#", ";")))]:
        key, equals, value = line.partition("=")
        if equals and key.strip().isalnum():
            yield key.strip(), value.strip()


def _is_true(text: str) -> bool:
    return text.lower() in ("1", "yes", "y", "true", "t", "on")


def logind(machine: Machine) -> Iterator[Finding]:
    """Look whether a logout ends what runs in the background.

    logind ends a session's own processes where KillUserProcesses says so; lingering does not spare those, only what the
    user's service manager started, which in turn ends with the last session unless the user lingers.
    """
    root, user = machine.root, machine.user
    if not (root / "run/systemd/system").is_dir():
        yield Finding("logind", "ok", "no systemd here, so no logout that ends processes")
        return
    values = _configured(root)
    excluded = values.get("KillExcludeUsers", "root").split()
    only = values.get("KillOnlyUsers", "").split()
    kills = _is_true(values.get("KillUserProcesses", "no")) and user not in excluded and (not only or user in only)
    lingers = (root / "var/lib/systemd/linger" / user).exists()
    holder = evidence.supervisor(machine.home)
    whose, group = ("the supervisor", _group(root, holder.pid)) if holder else ("this terminal", _group(root, "self"))
    managed = "/user@" in group
    if kills and not managed:
        words = f"KillUserProcesses is on: a logout of {user} ends supervisor and runs"
        remedy = f"loginctl enable-linger {user}; then start it outside the session: systemd-run --user --scope {START}"
        yield Finding("logind", "warning", words, remedy)
    elif managed and not lingers:
        words = f"{whose} belongs to the service manager of {user}, which ends with the last session"
        yield Finding("logind", "warning", words, f"loginctl enable-linger {user}")
    else:
        yield Finding("logind", "ok", f"a logout of {user} leaves runs going{' (lingering)' if lingers else ''}")


def _group(root: Path, pid: int | str) -> str:
    try:
        return (root / "proc" / str(pid) / "cgroup").read_text()
    except OSError:
        return ""
