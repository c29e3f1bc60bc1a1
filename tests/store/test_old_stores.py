"""A store that an earlier version made opens, keeps every row, and goes on working."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from engine.paths import Home
from engine.running import recover
from engine.running.ingest import ingest
from engine.service import Service
from engine.settings import Settings
from store import Store, StoreFull, attempts, backup, jobs, schema, states, telemetry
from tests.store import forked, stored
from tests.store.entries import claim

NOW = len(schema.MIGRATIONS)
OLD = [number for number in stored.SCHEMAS if number < NOW]


def test_there_is_a_store_of_every_schema_that_was_released() -> None:
    assert list(range(1, NOW + 1)) == stored.SCHEMAS


@pytest.mark.parametrize("number", stored.SCHEMAS)
def test_every_row_of_an_old_store_is_kept(tmp_path: Path, number: int) -> None:
    path = stored.unpack(number, tmp_path)
    before = stored.rows(path)
    assert {row["state"] for row in before["jobs"]} == set(states.ALL)
    # deployments waits for its first use; what a later schema brought cannot be filled by an earlier version.
    assert all(before[table] for table in before if table not in ("deployments", "sqlite_sequence"))
    Store(path).close()
    assert stored.version(path) == NOW
    assert stored.contains(stored.rows(path), before)


@pytest.mark.parametrize("number", stored.SCHEMAS)
def test_what_an_old_store_holds_can_be_read_by_every_face(tmp_path: Path, number: int) -> None:
    stored.unpack(number, tmp_path)
    service = Service(Home(tmp_path), config=Settings())
    found = {job.state: job for job in service.jobs()}
    assert set(found) == set(states.ALL)
    for job in found.values():
        assert (job.tags, job.notes, job.hyperparams["steps"]) == (["a", "b"], "für später", 50)
        folded = [event.payload["to"] for event in service.events(job.id) if event.kind == "state"]
        assert folded[-1] == job.state
    done = found["completed"].id
    assert [point.step for point in service.points(done) if point.phase == "train"] == list(range(1, 21))
    assert len(service.logs(done)) == 5
    assert [checkpoint.step for checkpoint in service.checkpoints(done)] == [20]
    assert (service.result(done) or {})["loss_final"] == 0.2
    assert service.model("mine").id == "made-1"
    assert [(data.name, data.version) for data in service.datasets() if data.name == "rows"] == [
        ("rows", 2),
        ("rows", 1),
    ]
    assert service.authenticate("fus_" + "s" * 43) is not None
    service.close()


@pytest.mark.parametrize("number", stored.SCHEMAS)
def test_the_journal_of_a_run_that_an_old_version_left_is_taken_in_to_its_end(tmp_path: Path, number: int) -> None:
    store = Store(stored.unpack(number, tmp_path))
    attempt = attempts.get(store.read(), stored.RUNNING, 1)
    assert attempt is not None
    assert ingest(store, attempt) == 3
    steps = [p.step for p in telemetry.points(store.read(), stored.RUNNING, phase="train")]
    assert steps == list(range(1, 33))
    ended = attempts.get(store.read(), stored.RUNNING, 1)
    assert ended is not None
    with store.write() as db:
        assert recover.settle(db, ended, 2000.0) == "queued"
    assert jobs.get(store.read(), stored.RUNNING).retries == 1
    store.close()


@pytest.mark.parametrize("number", stored.SCHEMAS)
def test_a_queued_job_of_an_old_store_can_be_claimed_and_settled(tmp_path: Path, number: int) -> None:
    store = Store(stored.unpack(number, tmp_path))
    (queued,) = jobs.newest(store.read(), state="queued")
    with store.write() as db:
        assert claim(db, queued.id) == 1
        attempts.update(db, queued.id, 1, outcome="failed", detail='{"error": "no", "cause": "data"}')
    (attempt,) = attempts.of_job(store.read(), queued.id)
    with store.write() as db:
        assert recover.settle(db, attempt, 2000.0) == "failed"
    assert jobs.get(store.read(), queued.id).error == "no"
    store.close()


@pytest.mark.parametrize("number", OLD)
def test_a_private_and_whole_copy_is_made_before_the_tables_change(tmp_path: Path, number: int) -> None:
    path = stored.unpack(number, tmp_path)
    before = stored.rows(path)
    Store(path).close()
    (copy,) = backup.listing(path)
    assert copy.name == f"store.db.before-schema-{NOW}"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert stored.version(copy) == number
    assert stored.rows(copy) == before
    # Put in the store's place it is a store like the one it was made of.
    shutil.copy(copy, path)
    Store(path).close()
    assert stored.contains(stored.rows(path), before)


def test_no_copy_is_made_of_a_new_store_nor_of_one_that_is_up_to_date(tmp_path: Path) -> None:
    Store(tmp_path / "store.db").close()
    Store(tmp_path / "store.db").close()
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


def test_the_newest_two_copies_are_kept(tmp_path: Path) -> None:
    path = stored.unpack(OLD[0], tmp_path)
    for number in (2, 10, 9):
        backup.path_of(path, number).write_bytes(b"old")
    path.with_name("store.db.before-schema-mine").write_bytes(b"not ours")
    with closing(sqlite3.connect(path)) as connection:
        made = backup.make(connection, path, 11)
    assert backup.listing(path) == [made, backup.path_of(path, 10)]
    assert path.with_name("store.db.before-schema-mine").exists()


def test_without_room_for_the_copy_nothing_changes_and_the_need_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored.unpack(OLD[0], tmp_path)
    before = stored.rows(path)
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    with monkeypatch.context() as patch:
        patch.setattr("store.backup.shutil.disk_usage", lambda place: usage)
        with pytest.raises(StoreFull, match=r"needs 0\.\d MB and 0\.1 MB are free"):
            Store(path)
    assert (stored.version(path), stored.rows(path)) == (OLD[0], before)
    assert backup.listing(path) == []
    Store(path).close()


def test_two_versions_that_open_an_old_store_at_once_both_find_it_migrated(tmp_path: Path) -> None:
    path = stored.unpack(OLD[0], tmp_path)
    before = stored.rows(path)

    def open_both() -> list[int]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            opened = list(pool.map(lambda _: Store(path), range(4)))
        return [schema.applied(store.read()) for store in opened]

    assert forked.run(open_both) == [NOW] * 4
    assert stored.contains(stored.rows(path), before)
    assert stored.rows(backup.path_of(path, NOW)) == before
