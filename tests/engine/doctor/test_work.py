"""What doctor finds of what runs need: checkpoints that verify, models and datasets with their files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine import manifest
from engine.doctor import work
from engine.doctor.finding import Machine
from engine.service import Service
from store import jobs, telemetry
from store.jobs import Job
from store.telemetry import Checkpoint
from tests.engine.conftest import request_for
from tests.engine.doctor.conftest import (
    of,
    trouble,
)


def publish(service: Service, job: Job, step: int = 5) -> Path:
    """Give a run a sealed checkpoint, as a worker and the supervisor do."""
    directory = service.home.attempt(job.id, 1) / "checkpoints" / f"step-{step:08d}"
    directory.mkdir(parents=True)
    (directory / "weights.safetensors").write_bytes(os.urandom(5000))
    manifest.seal(directory, {})
    row = Checkpoint(f"{job.id}-{step}", job.id, step, 0.0, 1.0, None, 1e-3, str(directory), 5000, "published", 1.0)
    with service.store.write() as writer:
        telemetry.add_checkpoint(writer, row)
    return directory


def test_one_flipped_bit_of_the_newest_checkpoint_is_found_and_its_file_named(
    machine: Machine, service: Service, job: Job
) -> None:
    directory = publish(service, job)
    assert [finding.level for finding in of(work.checkpoints, machine)] == ["ok"]
    path = directory / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.write_bytes(data)
    found = trouble(work.checkpoints, machine)
    assert found.level == "error"
    assert f"{directory}/weights.safetensors: does not match its hash" in found.seen


def test_a_run_that_waits_longest_is_looked_at_however_many_newer_ones_ended(
    machine: Machine, service: Service, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "ENDED_LOOKED_AT", 2)
    machine.clock = lambda: 2000.0
    directory = publish(service, job)
    for _ in range(3):
        ended = service.submit(request_for()).job
        with service.store.write() as writer:
            assert jobs.transition(writer, ended.id, "cancelled", fence=ended.fence, now=1990.0)
        publish(service, ended)
    [told] = of(work.checkpoints, machine)
    assert told.seen.startswith("3 verified")
    assert told.seen.endswith("not looked at: 1 more that ended within a week")
    (directory / "weights.safetensors").write_bytes(b"spoilt")
    assert str(directory) in trouble(work.checkpoints, machine).seen


def test_files_of_the_catalogue_that_are_gone_are_told_as_errors_where_a_run_waits_for_them(
    machine: Machine, service: Service
) -> None:
    assert {finding.level for finding in of(work.entries, machine)} == {"ok", "warning"}
    service.submit(request_for())
    found = [finding for finding in of(work.entries, machine) if finding.level == "error"]
    assert len(found) == 2
    assert all("a run waits for them" in finding.seen for finding in found)
