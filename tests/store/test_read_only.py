"""A store that may be looked at and not changed: a folder of another user, a network, or so asked."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine.errors import EngineError
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui.app import FusionApp
from fusion_tui.cli import main
from store import Store, StoreReadOnly, catalog, db, jobs
from tests.store import forked
from tests.store.entries import base_model, dataset, new_job

REQUEST = {"type": "finetune", "idempotency_key": "one", "base_model_id": "tiny", "dataset_id": "rows"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that a stranger may enter and read, unlike pytest's own."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    let_in(path, 0o755)
    shutil.rmtree(path)


def let_in(folder: Path, mode: int) -> None:
    """Let everybody read what lies in `folder`; the owner's right to write goes with `mode`."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(mode if path.is_dir() else 0o644 & (mode | 0o444))


@pytest.fixture(params=["DELETE", "WAL"])
def home(folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A data folder with one queued job, in each of the journal's modes, that nobody but its owner may write."""
    monkeypatch.setattr(db, "wal_is_safe", lambda version: request.param == "WAL")
    home = Home(folder / "home")
    service = Service(home, config=Settings())
    with service.store.write() as writer:
        catalog.add_base_model(writer, base_model())
        catalog.add_dataset(writer, dataset())
    service.submit(REQUEST)
    service.close()
    let_in(home.root, 0o555)
    return home


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_folder_of_another_user_is_opened_for_reading_without_being_asked(home: Home) -> None:
    before = content(home.root)

    def look() -> tuple[bool, list[str], str]:
        service = Service(home, config=Settings())
        return service.read_only, [job.state for job in service.jobs()], service.health()["store"]

    assert forked.run(look, stranger=True) == (True, ["queued"], "readonly")
    assert content(home.root) == before


def test_every_change_is_refused_in_words_and_nothing_is_made(home: Home, tmp_path: Path) -> None:
    before = content(home.root)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')

    def refusals() -> list[str]:
        service = Service(home, config=Settings(), read_only=True)
        job = service.jobs()[0]
        said = []
        for change in (
            lambda: service.submit({**REQUEST, "idempotency_key": "two"}),
            lambda: service.cancel(job.id),
            lambda: service.retry(job.id),
            lambda: service.delete(job.id),
            lambda: service.add_dataset(str(tmp_path / "rows.jsonl"), "more"),
            lambda: service.add_model("/nowhere", "more"),
            lambda: service.remove_dataset("rows"),
            lambda: service.remove_model("tiny"),
            service.token,
        ):
            with pytest.raises(StoreReadOnly) as refused:
                change()
            said.append(str(refused.value))
        return said

    for said in (refusals(), forked.run(refusals, stranger=True)):
        assert len(said) == 9
        assert all("opened read-only" in text and "FUSION_HOME" in text for text in said)
    now = content(home.root)
    # The index of a WAL is made where the folder lets it, as by root here; a stranger's is never.
    assert {name: data for name, data in now.items() if not name.endswith(("-shm", "-wal"))} == before


def test_the_command_line_says_once_that_it_only_looks(home: Home) -> None:
    surroundings = {"FUSION_HOME": str(home.root), "FUSION_READ_ONLY": "1"}
    listed = CliRunner().invoke(main, ["jobs", "--json"], env=surroundings)
    assert (listed.exit_code, [job["status"] for job in json.loads(listed.stdout)]) == (0, ["queued"])
    assert listed.stderr.splitlines() == [f"Read-only: {home.root} can be looked at here and not changed."]
    refused = CliRunner().invoke(main, ["cancel", service_name(home)], env=surroundings)
    assert refused.exit_code == 1
    assert "opened read-only" in refused.stderr


def service_name(home: Home) -> str:
    service = Service(home, config=Settings(), read_only=True)
    (job,) = service.jobs()
    service.close()
    return job.name


async def test_the_app_shows_what_is_there_and_makes_nothing(home: Home) -> None:
    before = content(home.root)
    service = Service(home, config=Settings(), read_only=True)
    app = FusionApp(service, interval=0.01)
    async with app.run_test() as pilot:
        while not app.overview.jobs:
            await pilot.pause(0.01)
    service.close()
    now = content(home.root)
    assert {name: data for name, data in now.items() if not name.endswith(("-shm", "-wal"))} == before


def test_what_the_owner_writes_meanwhile_is_seen(home: Home) -> None:
    told, ask = os.pipe(), os.pipe()

    def look_twice() -> list[list[str]]:
        service = Service(home, config=Settings())
        first = [job.state for job in service.jobs()]
        os.write(told[1], b".")
        os.read(ask[0], 1)
        return [first, [job.state for job in service.jobs()]]

    def write() -> None:
        os.read(told[0], 1)
        let_in(home.root, 0o755)
        owner = Store(home.store)
        with owner.write() as writer:
            (job,) = jobs.newest(writer)
            assert jobs.transition(writer, job.id, "cancelled", fence=job.fence, now=2.0)
        os.write(ask[1], b".")
        os.read(told[0], 1)

    owner = os.fork()
    if owner == 0:
        try:
            write()
        finally:
            os._exit(0)
    try:
        assert forked.run(look_twice, stranger=True) == [["queued"], ["cancelled"]]
    finally:
        os.write(told[1], b".")
        os.waitpid(owner, 0)
        for descriptor in (*told, *ask):
            os.close(descriptor)


def test_an_old_store_says_that_it_has_to_be_opened_once_where_it_can_be_written(home: Home) -> None:
    home.store.chmod(0o644)
    connection = sqlite3.connect(home.store)
    connection.execute("PRAGMA user_version=1")
    connection.close()
    with pytest.raises(StoreReadOnly, match=r"earlier version \(schema 1.*Open it once where it can be written"):
        Store(home.store, read_only=True)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreReadOnly, match=r"no job store .*store\.db to read"):
        Store(tmp_path / "store.db", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_entered_is_refused_in_words(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    Store(closed / "store.db").close()
    closed.chmod(0o000 if os.geteuid() else 0o700)
    with pytest.raises(EngineError, match=r"cannot be made.*Set FUSION_HOME"):
        forked.run(lambda: Service(Home(closed), config=Settings()), stranger=True)


def test_a_write_that_was_cut_short_is_named_as_what_keeps_a_stranger_from_reading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "wal_is_safe", lambda version: False)
    whole, cut = folder / "whole", folder / "cut"
    for path in (whole, cut):
        path.mkdir()
    store = Store(whole / "store.db")
    with store.write() as writer:
        for _ in range(50):
            new_job(writer, notes="x" * 4000)
    with store.write() as writer:
        writer.conn.execute("PRAGMA cache_size=2")  # so that the journal is on the disk before the commit
        writer.conn.execute("UPDATE jobs SET notes = notes || 'y'")
        for path in whole.iterdir():
            shutil.copy(path, cut)
    store.close()
    let_in(cut, 0o755)
    before = content(cut)
    with pytest.raises(StoreReadOnly, match=r"cut short.*open it there once"):
        forked.run(lambda: Store(cut / "store.db", read_only=True).path, stranger=True)
    assert content(cut) == before
    Store(cut / "store.db").close()
    undone = Store(cut / "store.db", read_only=True)
    assert {len(job.notes) for job in jobs.newest(undone.read())} == {4000}
    undone.close()
