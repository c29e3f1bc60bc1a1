"""A machine to be looked at, what a check finds on it, and ways to spoil it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from engine import atomic, process
from engine.doctor import examination, software
from engine.doctor.finding import Finding, Machine
from engine.paths import Home
from engine.process import Identity
from engine.resources import Device
from engine.service import Service
from engine.settings import Settings
from store import attempts, catalog, db
from store.jobs import Job
from tests.engine.conftest import Clock, request_for, start
from tests.store.entries import base_model, dataset

CPU = Device("cpu", "CPU, 2 cores", 1, 10)
CARD = Device("cuda:0", "A card", 1, 10)
DEAD = Identity(process.boot_id(), 2**22 + 1, 1)


@pytest.fixture(params=["DELETE", "WAL"])
def journal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The store's journal mode, each in turn, whichever this SQLite would have."""
    monkeypatch.setattr(db, "wal_is_safe", lambda version: request.param == "WAL")
    return str(request.param)


@pytest.fixture
def service(journal: str, tmp_path: Path, clock: Clock) -> Iterator[Service]:
    """A service on a fresh data folder, in each of the journal's modes."""
    opened = Service(Home(tmp_path / "home"), config=Settings(), clock=clock)
    with opened.store.write() as writer:
        catalog.add_base_model(writer, base_model())
        catalog.add_dataset(writer, dataset())
    yield opened
    opened.close()


@pytest.fixture
def machine(service: Service, tmp_path: Path) -> Machine:
    """A machine with a data folder, a free port, and a root without systemd and without a driver."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Machine(service.home, Settings(port=port), root=tmp_path / "root", user="ada", devices=lambda: [CPU])


def of(check: Callable[[Machine], Iterator[Finding]], machine: Machine) -> list[Finding]:
    """Return what a check finds, as the examination gives it."""
    return list(examination._carried_out("check", check, machine))


def trouble(check: Callable[[Machine], Iterator[Finding]], machine: Machine) -> Finding:
    """Return the one finding of a check that is no good news; it has a remedy."""
    [found] = [finding for finding in of(check, machine) if finding.level != "ok"]
    assert found.remedy
    return found


def without_training(machine: Machine) -> list[Finding]:
    """Return what all checks find but that of the training interpreter, which takes seconds."""
    checks = [one for one in examination.CHECKS if one[1] is not software.training]
    return [finding for name, check in checks for finding in examination._carried_out(name, check, machine)]


@pytest.fixture
def job(service: Service) -> Job:
    """A queued run."""
    return service.submit(request_for(hyperparams={"steps": 10})).job


def contents(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return every file and folder with its times and content.

    Of the index of a log only that it is there: in it SQLite's readers tell each other how far they have read.
    """
    found = sorted(root.rglob("*"))
    return {
        str(one): (one.stat().st_mode, one.stat().st_mtime_ns, one.read_bytes() if one.is_file() else b"")
        if not one.name.endswith("-shm")
        else (one.stat().st_mode, 0, b"")
        for one in found
    }


def claim(service: Service, job: Job, worker: Identity) -> None:
    """Have a run claimed, with this process for its worker."""
    attempt = start(service, job.id)
    with service.store.write() as writer:
        known = {"boot_id": worker.boot_id, "pid": worker.pid, "start_ticks": worker.start_ticks}
        attempts.update(writer, job.id, attempt.fence, **known)


def supervise(machine: Machine, identity: Identity) -> None:
    """Write down a supervisor, as one does when it comes up."""
    atomic.write_json(machine.home.supervisor_info, {**asdict(identity), "url": None})


def myself() -> Identity:
    """Return this process, which lives."""
    found = process.identify(os.getpid())
    assert found
    return found
