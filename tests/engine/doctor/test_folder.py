"""What doctor finds of the data folder and its store, and that it leaves both as they are."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.doctor import folder
from engine.doctor.finding import Machine
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from store import db, schema
from store.jobs import Job
from tests.engine.doctor.conftest import (
    contents,
    of,
    trouble,
    without_training,
)


def spoil(path: Path) -> None:
    """Overwrite the beginning of most pages of a store."""
    with path.open("r+b") as file:
        for page in range(3, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(os.urandom(512))


def test_a_damaged_page_of_the_store_is_found_and_the_other_checks_say_that_they_could_not_look(
    machine: Machine, service: Service, job: Job
) -> None:
    service.close()
    spoil(machine.home.store)
    found = {finding.name: finding for finding in without_training(machine) if finding.level != "ok"}
    assert found["store"].level == "error"
    assert ".recover" in found["store"].remedy
    assert "cannot be read" in found["workers"].seen


def test_a_file_that_is_no_store_is_found(machine: Machine, service: Service) -> None:
    service.close()
    machine.home.store.write_bytes(b"not a database at all, but long enough to have a header" * 4)
    assert trouble(folder.store, machine).level == "error"


def test_a_store_that_stays_locked_is_told_with_who_to_look_for(
    machine: Machine, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "BUSY_TIMEOUT_S", 0.05)
    service.close()
    holder = sqlite3.connect(machine.home.store, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")  # with a log, a writer alone keeps no reader out
    holder.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    found = {finding.name: finding for finding in without_training(machine) if finding.level != "ok"}
    holder.close()
    assert "busy" in found["store"].seen
    assert "fuser" in found["store"].remedy
    assert time.monotonic() - began < 5  # one check waits, and the others do not
    assert of(folder.store, replace(machine, _unread=False))[0].level == "ok"


def test_a_store_of_an_earlier_version_is_told_and_not_migrated(machine: Machine, service: Service) -> None:
    with service.store.write() as writer:
        writer.conn.execute("PRAGMA user_version=2")
    service.close()
    found = trouble(folder.store, machine)
    assert (found.level, "schema 2" in found.seen) == ("warning", True)
    assert sqlite3.connect(machine.home.store).execute("PRAGMA user_version").fetchone() == (2,)


def test_a_version_that_stands_in_the_log_alone_is_read_from_there(machine: Machine, service: Service) -> None:
    # As in a store that was just made or migrated: nothing has moved the log's pages into the file yet.
    for number in (2, len(schema.MIGRATIONS)):
        with service.store.write() as writer:
            writer.conn.execute(f"PRAGMA user_version={number}")
        found = of(folder.store, replace(machine, _unread=False))[0]
        assert found.level == ("warning" if number == 2 else "ok"), found


def test_a_store_that_is_written_under_the_look_is_looked_at_again(machine: Machine, service: Service) -> None:
    service.close()
    whole = machine.home.store.read_bytes()
    spoil(machine.home.store)
    assert trouble(folder.store, replace(machine)).level == "error"

    class Written(Machine):
        """A machine on which somebody ends his write as soon as the store was looked at once."""

        def store_version(self) -> int:
            try:
                return super().store_version()
            finally:
                machine.home.store.write_bytes(whole)

    assert of(folder.store, Written(machine.home))[0].level == "ok"


def test_a_write_that_was_cut_short_is_left_for_the_next_start_and_told_where_it_keeps_from_reading(
    machine: Machine, service: Service, journal: str
) -> None:
    service.close()
    writer = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=2")
db.execute("BEGIN IMMEDIATE")
for number in range(2000):
    db.execute("INSERT INTO settings VALUES (?, ?)", (str(number), "x" * 500))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", writer, str(machine.home.store)], check=False)
    before = contents(machine.home.root)
    found = of(folder.store, machine)[0]
    remedies = {"DELETE": ("warning", "The next start takes it back: fusion-tui jobs"), "WAL": ("ok", "")}
    assert (found.level, found.remedy) == remedies[journal]
    assert contents(machine.home.root) == before
    Service(machine.home, config=Settings()).close()
    assert of(folder.store, replace(machine, _unread=False))[0].level == "ok"


@pytest.mark.parametrize(("name", "mode", "level"), [("token", 0o644, "error"), ("store.db", 0o640, "warning")])
def test_files_that_others_can_read_are_told(machine: Machine, name: str, mode: int, level: str) -> None:
    path = machine.home.root / name
    path.touch()
    path.chmod(mode)
    found = trouble(folder.permissions, machine)
    assert (found.level, found.remedy) == (level, f"chmod 600 '{path}'")


@pytest.mark.parametrize(("free", "level"), [(1_000_000, "error"), (10**9, "warning"), (10**11, "ok")])
def test_little_room_on_the_disk_is_told(machine: Machine, free: int, level: str) -> None:
    machine.free_bytes = lambda _: free
    [found] = of(folder.disk, machine)
    assert found.level == level


def test_a_network_file_system_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {tmp_path} rw - nfs4 server:/home rw\n")
    monkeypatch.setattr("store.filesystems.MOUNTINFO", table)
    found = trouble(folder.disk, machine)
    assert (found.level, "nfs4" in found.seen) == ("error", True)


def test_what_lies_about_is_counted_with_its_size(machine: Machine, job: Job) -> None:
    attempt = machine.home.attempt(job.id, 1) / "checkpoints"
    for place in (attempt / "step-00000001.damaged", attempt / ".stage-00000002", machine.home.root / "runs/unknown"):
        place.mkdir(parents=True)
        (place / "weights").write_bytes(bytes(2000))
    stages, quarantined, strays = of(folder.leftovers, machine)
    assert (stages.level, "1 unfinished stages or removals, 2.0 kB") == ("ok", stages.seen)
    assert (quarantined.level, "1 damaged checkpoints were set aside, 2.0 kB") == ("warning", quarantined.seen)
    assert "does not know" in strays.seen
    assert "unknown" in strays.seen


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Path]:
    """A data folder on a disk of its own that was mounted read-only after a service had made it."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        Service(Home(place / "home"), config=Settings()).close()
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        yield place / "home"
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_data_folder_that_cannot_be_written_is_told_and_the_rest_of_it_is_read(
    machine: Machine, sealed: Path
) -> None:
    machine.home = Home(sealed)
    found = {finding.name: finding for finding in without_training(machine) if finding.level == "error"}
    assert sorted(found) == ["disk", "folder"]
    assert "cannot be written" in found["folder"].seen
    assert "runs are held" in found["disk"].seen  # the disk of the test is a small one
