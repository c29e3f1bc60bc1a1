"""A dead run is never shown as running: what speaks for one, and what the command line says where nothing does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
from click.testing import CliRunner, Result

from engine import atomic, process
from engine.process import Identity
from engine.running import evidence
from engine.service import Service
from fusion_tui.cli import main
from store import attempts
from store.jobs import Job
from tests.engine.conftest import request_for, reread, start

DEAD = Identity(process.boot_id(), 2**22 + 1, 1)


@pytest.fixture
def running(service: Service) -> Job:
    """A run that was claimed and trains, as the store says; its worker is not known yet."""
    job = service.submit(request_for()).job
    start(service, job.id)
    return service.job(job.id)


@pytest.fixture
def worker() -> Iterator[Identity]:
    """A process that lives."""
    child = subprocess.Popen(["sleep", "60"])
    found = process.identify(child.pid)
    assert found
    yield found
    child.kill()
    child.wait()


def commit(service: Service, job: Job, identity: Identity) -> None:
    """Store who the worker is."""
    known = {"boot_id": identity.boot_id, "pid": identity.pid, "start_ticks": identity.start_ticks}
    with service.store.write() as db:
        attempts.update(db, job.id, job.fence, **known)


def supervise(service: Service, identity: Identity) -> None:
    """Write down a supervisor."""
    atomic.write_json(service.home.supervisor_info, {**asdict(identity), "url": None})


def seen(service: Service) -> dict[str, str]:
    """Return the evidence of every run."""
    return dict(evidence.of_jobs(service.store.read(), service.home, service.jobs()))


def test_a_run_whose_worker_lives_is_alive_with_or_without_a_supervisor(
    service: Service, running: Job, worker: Identity
) -> None:
    commit(service, running, worker)
    assert seen(service) == {running.id: "alive"}
    supervise(service, worker)
    assert seen(service) == {running.id: "alive"}


@pytest.mark.parametrize("change", ["pid", "start_ticks", "boot_id"])
def test_a_process_that_differs_in_anything_is_another(
    service: Service, running: Job, worker: Identity, change: str
) -> None:
    other = {"pid": DEAD.pid, "start_ticks": worker.start_ticks + 1, "boot_id": "another boot"}
    commit(service, running, replace(worker, **{change: other[change]}))
    assert seen(service) == {running.id: "lost"}


def test_a_dead_worker_is_gone_where_a_supervisor_will_find_it_and_lost_where_none_is(
    service: Service, running: Job, worker: Identity
) -> None:
    commit(service, running, DEAD)
    assert seen(service) == {running.id: "lost"}
    supervise(service, worker)
    assert seen(service) == {running.id: "gone"}
    supervise(service, DEAD)
    assert seen(service) == {running.id: "lost"}


def test_a_worker_that_is_not_known_yet_is_being_started_by_whoever_supervises(
    service: Service, running: Job, worker: Identity
) -> None:
    assert seen(service) == {running.id: "lost"}
    supervise(service, worker)
    assert seen(service) == {running.id: "starting"}


def test_runs_that_nobody_says_are_worked_on_need_no_evidence(service: Service) -> None:
    service.submit(request_for())
    service.cancel(service.submit(request_for()).job.id)
    assert seen(service) == {}


def test_a_zombie_is_dead(service: Service, running: Job) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        # Not reaped: its number is still taken.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        commit(service, running, Identity(process.boot_id(), child, 1))
        assert seen(service) == {running.id: "lost"}
    finally:
        os.waitpid(child, 0)


def command(service: Service, *arguments: str) -> Result:
    """Run a command on this data folder."""
    done = CliRunner().invoke(main, arguments, env={"FUSION_HOME": str(service.home.root), "FUSION_CONFIG": "/none"})
    assert done.exit_code == 0, done.output
    return done


def test_the_command_line_says_lost_and_what_to_do(service: Service, running: Job, worker: Identity) -> None:
    commit(service, running, DEAD)
    line = next(line for line in command(service, "jobs").stdout.splitlines() if running.id[:8] in line)
    assert "lost?" in line
    assert "running" not in line
    text = command(service, "show", running.id).stdout
    assert "no supervisor is there to go on with it; go on: fusion-tui serve --detach" in text
    [listed] = json.loads(command(service, "jobs", "--json").stdout)
    shown = json.loads(command(service, "show", running.id, "--json").stdout)
    assert listed["evidence"] == shown["evidence"] == "lost"
    assert listed["status"] == "running"  # the store's word stays: it is the next supervisor's to change


def test_the_command_line_says_alive(service: Service, running: Job, worker: Identity) -> None:
    commit(service, running, worker)
    assert json.loads(command(service, "show", running.id, "--json").stdout)["evidence"] == "alive"
    assert "running" in command(service, "jobs").stdout
    assert reread(service, running.id).pid == worker.pid
