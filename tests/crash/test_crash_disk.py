"""A disk that fills up under a run: the last states are written, the run waits for room, and goes on when there is."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import process
from engine.running.ballast import BALLAST_BYTES, PLENTY, Ballast
from engine.running.supervisor import Supervisor
from engine.service import Job, Service
from fusion_tui import daemon
from store import StoreError, attempts
from tests.conditions import eventually
from tests.crash import light
from tests.crash.disks import fill, on_a_small_disk

STEPS = 60
SIZE = "100m"  # a run starts where there are 77 MB

# When the disk fills up, as what a look at the job and its newest attempt says.
MOMENTS: dict[str, Callable[[Service, Job], bool]] = {
    "before the start": lambda service, job: True,
    "at the gate": lambda service, job: bool(attempts.open_attempts(service.store.read())),
    "in the middle": lambda service, job: job.step >= 10,
    "after a checkpoint": lambda service, job: job.last_checkpoint_step >= 20,
}


def fill_up(disk: Path) -> Path:
    """Fill the disk, most of it at one stroke: the worker goes on meanwhile. Return the file that does so."""
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 2**22)
    return fill(disk)


def integrity(service: Service) -> list[str]:
    """Return what SQLite itself finds in the store."""
    connection = sqlite3.connect(service.home.store)
    found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    connection.close()
    return found


def run_while_it_fills(disk: Path, executable: Path, moment: str, full: Path) -> None:
    skew = [0.0]
    service = light.open_service(disk / "home", executable)
    job_id = light.submit(service, steps=STEPS, save_steps=20)
    supervisor = Supervisor(service, clock=lambda: time.time() + skew[0])

    def round_done() -> Job:
        try:
            supervisor.tick()
        except (StoreError, OSError):
            pass  # as its thread does: it tries again
        return service.job(job_id)

    supervisor._keep_ballast()
    assert service.home.ballast.stat().st_size == BALLAST_BYTES
    eventually(lambda: MOMENTS[moment](service, service.job(job_id)) or not round_done(), what=moment)
    filler = fill_up(disk)
    full.touch()

    def held() -> Job | None:
        job = round_done()
        return job if job.state == "queued" and (job.hold or "").startswith("disk_full: ") else None

    assert eventually(held, what="the hold").retries == 0
    assert integrity(service) == ["ok"]
    assert all(attempt.ended_at for attempt in light.history(service, job_id))

    filler.unlink()
    skew[0] += 60
    job = eventually(lambda: job if (job := round_done()).finished else None, what="the end")
    assert (job.state, job.retries, job.error) == ("completed", 0, None)
    assert light.steps_of(service, job_id) == list(range(1, STEPS + 1))
    assert integrity(service) == ["ok"]
    skew[0] += 60
    supervisor._ballast_looked = float("-inf")
    supervisor.tick()
    assert service.home.ballast.stat().st_size == BALLAST_BYTES
    supervisor.close()
    service.close()


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_a_run_whose_disk_fills_up_is_held_and_completes_when_there_is_room(tmp_path: Path, moment: str) -> None:
    # It goes on while the disk fills up, but not to its end, however long that takes.
    full, behaviour = tmp_path / "full", {"step_s": 0.02, "pad": 100_000, "waits_at": STEPS - 10}
    executable = light.install(tmp_path / "bin", **behaviour, waits_for=str(full))
    disk = tmp_path / "disk"
    on_a_small_disk(disk, SIZE, run_while_it_fills, disk, executable, moment, full)


def end_on_a_full_disk(disk: Path, executable: Path) -> None:
    service = light.open_service(disk / "home", executable)
    job_id = light.submit(service, steps=STEPS)
    supervisor = Supervisor(service)
    supervisor.tick()
    worker = attempts.open_attempts(service.store.read())[0]
    eventually(lambda: process.identify(worker.pid or 0) is None, what="the worker's end")
    fill_up(disk)
    assert service.job(job_id).state == "provisioning"
    supervisor.tick()
    job = service.job(job_id)
    assert (job.state, job.retries) == ("completed", 0)
    assert light.steps_of(service, job_id) == list(range(1, STEPS + 1))
    assert light.history(service, job_id)[0].exit_code == 0
    assert not service.home.ballast.exists()
    assert integrity(service) == ["ok"]


def test_on_a_full_disk_the_end_of_a_run_is_still_written_down(tmp_path: Path) -> None:
    executable = light.install(tmp_path / "bin")
    disk = tmp_path / "disk"
    on_a_small_disk(disk, SIZE, end_on_a_full_disk, disk, executable)


def come_up_on_a_full_disk(disk: Path, executable: Path) -> None:
    service = light.open_service(disk / "home", executable)
    Supervisor(service).close()
    Ballast(service.home.ballast).keep(PLENTY)
    fill_up(disk)
    supervisor = Supervisor(service)
    daemon._show(service.home, None)
    assert daemon.running(service.home)
    supervisor.close()


def test_a_supervisor_comes_up_on_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    on_a_small_disk(disk, "16m", come_up_on_a_full_disk, disk, light.install(tmp_path / "bin"))


def test_the_ballast_is_given_up_for_the_last_states_alone(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast")
    ballast.keep(PLENTY - 1)
    assert not (tmp_path / "ballast").exists()
    ballast.keep(PLENTY)
    stat = (tmp_path / "ballast").stat()
    assert (stat.st_size, stat.st_mode & 0o777) == (BALLAST_BYTES, 0o600)
    assert stat.st_blocks * 512 >= BALLAST_BYTES
    assert ballast.give_up()
    assert not ballast.give_up()
