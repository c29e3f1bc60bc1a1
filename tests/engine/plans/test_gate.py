"""A run that does not fit what is free waits, says for whom, and starts by itself; nothing waits for nobody."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine import resources
from engine.resources import Device
from engine.running.supervisor import Supervisor
from engine.service import Job, Service
from store import jobs
from tests.engine.conftest import Clock
from tests.store.entries import new_job

GB = 10**9
CARD = Device("cuda:0", "RTX", 0, 24 * GB)


class Machine:
    """Devices whose load the test sets, and workers that only note that they were started."""

    def __init__(self, service: Service, clock: Clock, tmp_path: Path, *devices: Device) -> None:
        self.devices = list(devices)
        self.service = service
        self.started: list[str] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self._quiet = tmp_path / "quiet"
        self._clock = clock
        self.supervisor = Supervisor(service, devices=lambda: self.devices, launch=self._launch, clock=clock)

    def _launch(self, directory: Path, **options: Any) -> subprocess.Popen[bytes]:
        self.started.append(directory.parent.name)
        with self._quiet.open("ab") as out:
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=out, stderr=out)
        self.children.append(child)
        return child

    def load(self, *used: int) -> None:
        """Set the bytes that are taken on each device."""
        self.devices = [replace(device, memory_used=taken) for device, taken in zip(self.devices, used, strict=True)]

    def job(self, needed: int, *, mode: str = "lora/none") -> Job:
        """Queue a job whose stored plan needs so much. It cannot be started in earnest: its model has no files."""
        plan = {"mode": mode, "phase": "training", "parts": {"weights": needed}, "phases": {"training": needed}}
        stored = {**plan, "planned": needed, "needed": needed, "device": "RTX", "total": 24 * GB}
        model, data = self.service.model("tiny"), self.service.dataset("rows")
        with self.service.store.write() as db:
            return new_job(db, base_model_id=model.id, dataset_id=data.id, plan=stored)

    def tick(self) -> None:
        """Do a round, some time after the one before: a queue of which nothing could start is left for a second."""
        self._clock.now += 1
        self.supervisor.tick()

    def look(self, job: Job) -> Job:
        return self.service.job(job.id)

    def holds(self, job: Job) -> int:
        return [event.kind for event in self.service.events(job.id)].count("hold")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files for the model and the dataset, without which no order is written."""
    for name in ("model", "rows.jsonl"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def machine(service: Service, clock: Clock, files: Path) -> Iterator[Machine]:
    with service.store.write() as db:
        db.conn.execute("UPDATE base_models SET path = ? WHERE name = 'tiny'", [str(files / "model")])
        db.conn.execute("UPDATE datasets SET path = ? WHERE name = 'rows'", [str(files / "rows.jsonl")])
    made = Machine(service, clock, files, CARD)
    yield made
    for child in made.children:
        child.kill()
        child.wait()
    made.supervisor.close()


def test_a_run_waits_for_room_and_then_starts_by_itself(machine: Machine) -> None:
    machine.load(20 * GB)
    job = machine.job(10 * GB)
    for _ in range(3):
        machine.tick()
    held = machine.look(job)
    assert (held.state, held.fence, held.retries) == ("queued", 0, 0)
    assert held.hold is not None
    assert held.hold.startswith("memory: needs 10.0 GB, 4.0 GB of 24.0 GB free on RTX; ")
    assert machine.holds(job) == 1
    machine.load(14 * GB)
    machine.tick()
    begun = machine.look(job)
    assert (begun.state, begun.hold) == ("provisioning", None)
    assert machine.started == [job.id]


def test_the_hold_names_who_holds_the_memory_now(
    machine: Machine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, with a process that really holds some, until it ends. All are named, for others may hold more."""
    monkeypatch.setattr(resources, "holders", partial(resources.holders, at_most=10_000))
    machine.devices = [Device("cpu", "CPU, 2 cores", 60 * GB, 64 * GB)]
    job = machine.job(20 * GB)
    holding = "held = bytearray(300_000_000); held[::4096] = b'x' * len(held[::4096]); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        machine.tick()
        found = re.search(rf"\(pid {holder.pid}, (\d+)\.\d MB\)", machine.look(job).hold or "")
        assert found is not None
        assert 300 <= int(found[1]) < 400
    finally:
        holder.kill()
        holder.wait()
    machine.tick()
    assert f"pid {holder.pid}," in (machine.look(job).hold or "")  # not looked at again at once
    clock.now += 10
    machine.tick()
    assert f"pid {holder.pid}," not in (machine.look(job).hold or "")
    assert machine.holds(job) == 1


def test_a_smaller_run_passes_one_that_waits(machine: Machine) -> None:
    machine.load(20 * GB)
    large, small = machine.job(10 * GB), machine.job(3 * GB)
    machine.tick()
    assert machine.started == [small.id]
    assert machine.look(large).state == "queued"


def test_each_run_goes_to_a_device_that_has_room(machine: Machine) -> None:
    machine.devices = [CARD, replace(CARD, name="cuda:1", label="H100", memory_total=80 * GB)]
    huge, large = machine.job(60 * GB), machine.job(20 * GB)
    machine.tick()
    assert machine.started == [huge.id, large.id]
    assert [machine.service.events(job.id)[-1].payload["device"] for job in (huge, large)] == ["cuda:1", "cuda:0"]


def test_a_run_too_large_for_the_free_card_waits_for_the_larger_one(machine: Machine) -> None:
    machine.devices = [CARD, replace(CARD, name="cuda:1", label="H100", memory_total=80 * GB)]
    first, second = machine.job(60 * GB), machine.job(60 * GB)
    machine.tick()
    assert machine.started == [first.id]
    assert "more than RTX has; waits for a larger device" in (machine.look(second).hold or "")


def test_a_little_is_overlooked_in_main_memory_but_not_on_a_card(machine: Machine) -> None:
    job = machine.job(10 * GB)
    machine.load(24 * GB - 9_200_000_000)
    machine.tick()
    assert machine.started == []
    machine.devices = [Device("cpu", "CPU", 24 * GB - 9_200_000_000, 24 * GB)]
    machine.tick()
    assert machine.started == [job.id]


@pytest.mark.parametrize("device", [CARD, replace(CARD, memory_total=0), Device("cpu", "CPU", 20 * GB, 24 * GB)])
def test_what_no_waiting_helps_is_let_through(machine: Machine, device: Device) -> None:
    """A later measurement, or another card, may make a run too large for everything that is here."""
    machine.devices = [device]
    job = machine.job(30 * GB)
    machine.tick()
    assert machine.started == [job.id]


def test_a_run_without_a_plan_is_not_held(machine: Machine) -> None:
    machine.load(24 * GB)
    with machine.service.store.write() as db:
        job = new_job(db, base_model_id=machine.service.model("tiny").id, dataset_id=machine.service.dataset("rows").id)
    machine.tick()
    assert machine.started == [job.id]


def test_what_runs_have_taught_since_the_submit_counts(machine: Machine) -> None:
    from store import memory_peaks
    from store.memory_peaks import Peak

    machine.load(14_500_000_000)
    job = machine.job(10 * GB)
    machine.tick()
    assert machine.started == []
    with machine.service.store.write() as db:
        memory_peaks.record(db, Peak("earlier", "RTX", "lora/none", 10 * GB, 9 * GB, 1.0))
    machine.tick()
    assert machine.started == [job.id]


def test_a_full_disk_and_then_full_memory_are_told_one_after_the_other(
    service: Service, machine: Machine, clock: Clock
) -> None:
    machine.supervisor._free_bytes = lambda path: 0
    job = machine.job(10 * GB)
    machine.tick()
    assert (machine.look(job).hold or "").startswith("disk_full: ")
    machine.supervisor._free_bytes = lambda path: 10**12
    machine.load(20 * GB)
    machine.tick()
    assert (machine.look(job).hold or "").startswith("memory: ")
    assert machine.holds(job) == 2


def test_a_cancelled_run_waits_no_more(machine: Machine) -> None:
    machine.load(20 * GB)
    job = machine.job(10 * GB)
    machine.tick()
    machine.service.cancel(job.id)
    machine.load(0)
    machine.tick()
    assert machine.started == []
    assert machine.look(job).hold is None
    assert jobs.count(machine.service.store.read()) == {"cancelled": 1}


def test_a_long_queue_is_told_at_one_look_and_then_left_for_a_while(
    machine: Machine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Device] = []
    look = resources.holders
    monkeypatch.setattr(resources, "holders", lambda device: looks.append(device) or look(device))
    machine.load(20 * GB)
    waiting = [machine.job(10 * GB) for _ in range(20)]
    for _ in range(3):
        machine.tick()
    assert len(looks) == 1
    assert all(machine.holds(job) == 1 for job in waiting)
    clock.now += 10
    machine.tick()
    assert len(looks) == 2
