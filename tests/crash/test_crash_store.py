"""A write of the store happens whole or not at all, wherever the process dies and whatever statement fails.

Every statement of every write that the service and the supervisor make is tried: the process dies before it and after
it, and it fails for want of room, by an error of the disk, and because the store is locked.
"""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine.journal import JournalWriter
from engine.order import Order
from engine.paths import Home
from engine.running import recover, starting
from engine.running.ingest import ingest
from engine.service import Service
from engine.settings import Settings
from store import Store, StoreBusy, StoreError, StoreFull, attempts, catalog, jobs
from store.attempts import Attempt
from tests.crash import disks, faults
from tests.store import forked, stored
from tests.store.entries import base_model, claim, dataset

REQUEST: dict[str, Any] = {"type": "finetune", "idempotency_key": "one", "base_model_id": "tiny", "dataset_id": "rows"}
POINT = {"phase": "train", "ts": 1.0, "loss": 1.0, "eta_s": 2.0}
CHECKPOINT = {"path": "/c", "bytes": 1, "step": 2, "epoch": 0.5, "loss": 1.0, "eval_loss": None, "lr": 1e-4}
MODEL = {"id": "made", "name": "out", "family": "llama", "params": 7, "precision": "bf16", "path": "/m"}
# What a worker may say, of each kind one.
LINES: list[tuple[str, dict[str, Any]]] = [
    ("state", {"to": "checkpointing", "activity": "saving"}),
    *(("point", {"step": step, **POINT}) for step in (1, 2)),
    ("log", {"stream": "train", "text": "hello"}),
    ("event", {"kind": "oom", "payload": {"rung": 1}}),
    ("checkpoint", CHECKPOINT),
    ("memory", {"peak_bytes": 5, "phase": "train"}),
    ("model", MODEL),
    ("result", {"loss_final": 1.0}),
    ("resume", {"step": 1}),
    ("end", {"outcome": "completed", "error": None, "cause": None}),
]
# What is made up anew in each try, or names its folder.
UNREPEATED = {"checkpoints": ("id",), "keys": ("secret_hash", "prefix"), "attempts": ("directory",)}


@dataclass
class World:
    """A data folder in which every kind of write has something to do."""

    home: Home
    queued: str = ""
    running: str = ""
    failed: str = ""

    def open(self) -> Service:
        """Open the folder with ids and times that are the same in each try."""
        return Service(self.home, config=Settings(), clock=lambda: 5000.0, new_id=lambda: "a" * 36)

    def copy(self, target: Path) -> World:
        """Return a world of its own with the same content; the journal, which is only read, stays where it is."""
        target.mkdir(mode=0o700)
        shutil.copy(self.home.store, target / "store.db")
        return World(Home(target), self.queued, self.running, self.failed)

    def rows(self) -> stored.Rows:
        """Return all rows, after whatever was cut short was made good; see that the file is whole and rows agree."""
        store = Store(self.home.store)
        with closing(sqlite3.connect(self.home.store)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        for job in jobs.newest(store.read()):
            folded = [event.payload["to"] for event in jobs.events(store.read(), job.id) if event.kind == "state"]
            assert folded[-1] == job.state
        store.close()
        found = stored.rows(self.home.store)
        for table, columns in UNREPEATED.items():
            found[table] = [{key: row[key] for key in row if key not in columns} for row in found[table]]
        return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A fresh folder, quicker than pytest's own."""
    path = Path(tempfile.mkdtemp(dir=forked.FAST))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world that each try gets a copy of."""
    made = World(Home(tmp_path_factory.mktemp("world") / "home"))
    service = made.open()
    with service.store.write() as db:
        catalog.add_base_model(db, base_model(id="base"))
        catalog.add_dataset(db, dataset(id="data"))
    service.close()
    numbers = iter(range(9))
    service = Service(made.home, config=Settings(), clock=lambda: 10.0, new_id=lambda: f"{next(numbers)}" * 36)
    made.queued, made.running, made.failed = (
        service.submit({**REQUEST, "idempotency_key": key}).job.id for key in ("queued", "running", "failed")
    )
    directory = service.home.attempt(made.running, 1)
    directory.mkdir(parents=True)
    with service.store.write() as db:
        claim(db, made.running, directory=str(directory))
        attempts.update(db, made.running, 1, boot_id="b", pid=1, start_ticks=1, gate_opened=1, journal_seq=0)
        for state in ("staging", "running"):
            jobs.transition(db, made.running, state, fence=1, now=11.0)
        jobs.transition(db, made.failed, "failed", fence=0, now=11.0, error="no")
    writer = JournalWriter(directory / "journal.jsonl", 1, clock=lambda: 12.0)
    writer.append_all(LINES)
    writer.close()
    service.close()
    return made


def attempt_of(world: World, service: Service, **told: Any) -> Attempt:
    """Return the running job's attempt, after its worker has told these columns."""
    if told:
        with service.store.write() as db:
            attempts.update(db, world.running, 1, **told)
    found = attempts.get(service.store.read(), world.running, 1)
    assert found is not None
    return found


def take_job(world: World, service: Service) -> None:
    """Claim the queued job as the supervisor does."""
    job = service.job(world.queued)
    directory = service.home.attempt(job.id, 1)
    values = {"hyperparams": job.hyperparams, "model_id": "base", "model_name": "tiny", "model_path": "/nowhere"}
    data = {"dataset_name": "rows", "dataset_path": "/nowhere", "dataset_sha256": "0" * 64}
    output = {"output_id": "o", "output_name": "out", "output_path": "/o", "checkpoint_roots": ()}
    order = Order(job_id=job.id, fence=1, type=job.type, device="cpu", **values, **data, **output)
    starting.claim(service.store, job, order, directory, 5000.0)


def settle(world: World, service: Service, outcome: str | None) -> None:
    """End the running job's attempt: its worker said `outcome`, or nothing."""
    with service.store.write() as db:
        attempt = attempts.get(db, world.running, 1)
        assert attempt is not None
        if outcome:
            attempts.update(db, world.running, 1, outcome=outcome, detail='{"error": "e", "cause": "data"}')
            attempt = attempts.get(db, world.running, 1) or attempt
        recover.settle(db, attempt, 5000.0)


def abandon(world: World, service: Service) -> None:
    """Give up the running job's attempt as one that never began."""
    with service.store.write() as db:
        recover.abandon(db, attempt_of(world, service), 5000.0)


def add_and_remove(world: World, service: Service) -> None:
    """Take entries into the catalogue and out of it, each in a transaction of its own."""
    with service.store.write() as db:
        catalog.add_base_model(db, base_model(id="second"))
        catalog.add_dataset(db, dataset(id="more"))


WRITES: dict[str, Callable[[World, Service], Any]] = {
    "submit": lambda world, service: service.submit(REQUEST),
    "cancel of a queued job": lambda world, service: service.cancel(world.queued),
    "cancel of a running job": lambda world, service: service.cancel(world.running),
    "retry": lambda world, service: service.retry(world.failed),
    "claim": take_job,
    "commit": lambda world, service: attempt_of(world, service, pid=7, start_ticks=8),
    "ingest": lambda world, service: ingest(service.store, attempt_of(world, service)),
    "settle a lost worker": lambda world, service: settle(world, service, None),
    "settle a completed one": lambda world, service: settle(world, service, "completed"),
    "settle a failed one": lambda world, service: settle(world, service, "failed"),
    "abandon": abandon,
    "add entries": add_and_remove,
    "remove an entry": lambda world, service: catalog_remove(service),
    "first key": lambda world, service: service.token(),
}


def catalog_remove(service: Service) -> None:
    """Take a row out of the catalogue that no job needs."""
    with service.store.write() as db:
        catalog.remove(db, service.model("starter"))  # type: ignore[arg-type]


def refuse(words: str) -> faults.Action:
    """Return an action that fails a statement as SQLite does, in its words."""

    def action(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        raise sqlite3.OperationalError(words)

    return action


# Words of SQLite, what becomes of them, and whether every later statement, the undoing as well, meets the same.
REFUSALS = (
    ("database or disk is full", StoreFull, False),
    ("disk I/O error", StoreError, True),
    ("database is locked", StoreBusy, True),
)


def count_and_do(world: World, write: Callable[[World, Service], Any]) -> int:
    """Make the write undisturbed; return how many statements it took."""
    service = world.open()
    with faults.at(0, faults.die, files=False, sql=True) as count:
        write(world, service)
    service.close()
    return count.calls


def die_within(world: World, write: Callable[[World, Service], Any], number: int, action: faults.Action) -> None:
    """Make the write and die at statement `number`; changes reach the file early, for the next opening to undo."""
    service = world.open()
    service.store._writer().conn.execute("PRAGMA cache_size=1")
    with faults.at(number, action, files=False, sql=True):
        write(world, service)


@pytest.mark.parametrize("name", WRITES)
def test_a_death_at_any_statement_leaves_the_write_whole_or_undone(world: World, folder: Path, name: str) -> None:
    write = WRITES[name]
    before = world.rows()
    whole = world.copy(folder / "whole")
    statements = count_and_do(whole, write)
    after = whole.rows()
    assert after != before
    tried = world.copy(folder / "tried")
    for number in range(1, statements + 1):
        # Dying after a statement is dying before the next.
        for action in (faults.die, *([faults.die_after] if number == statements else [])):
            assert faults.forked(partial(die_within, tried, write, number, action)) == -signal.SIGKILL
            found = tried.rows()
            if found != before:
                assert found == after
                tried = world.copy(folder / f"tried after {number} {action.__name__}")
    assert found == after  # who dies after the last statement has done it


@pytest.mark.parametrize("name", WRITES)
def test_a_statement_that_fails_undoes_the_write_and_the_next_try_does_it_whole(
    world: World, folder: Path, name: str
) -> None:
    write = WRITES[name]
    whole = world.copy(folder / "whole")
    statements = count_and_do(whole, write)
    tried = world.copy(folder / "tried")
    pristine = stored.rows(tried.home.store)
    service = tried.open()
    for number in range(1, statements + 1):
        for words, error, onward in REFUSALS:
            with (
                faults.at(number, refuse(words), files=False, sql=True, onward=onward),
                pytest.raises(error, match=re.escape(str(tried.home.store))),
            ):
                write(tried, service)
            assert stored.rows(tried.home.store) == pristine
    write(tried, service)
    service.close()
    assert tried.rows() == whole.rows()


def test_the_same_request_after_any_death_is_one_job(world: World, folder: Path) -> None:
    whole = world.copy(folder / "whole")
    statements = count_and_do(whole, WRITES["submit"])
    for number in range(1, statements + 1):
        tried = world.copy(folder / f"tried-{number}")
        dying = partial(die_within, tried, WRITES["submit"], number, faults.die_after)
        assert faults.forked(dying) == -signal.SIGKILL
        service = tried.open()
        again = service.submit(REQUEST)
        assert len(service.jobs()) == 4
        assert service.submit(REQUEST).job.id == again.job.id
        service.close()
        assert tried.rows() == whole.rows()


def die_opening(path: Path, number: int) -> None:
    """Open a store and die after statement `number` of that."""
    with faults.at(number, faults.die_after, files=False, sql=True):
        Store(path)


def test_a_death_at_any_statement_of_an_opening_leaves_an_old_store_that_opens_and_has_lost_nothing(
    folder: Path,
) -> None:
    path = stored.unpack(1, folder / "old")
    before = stored.rows(path)
    pristine = path.read_bytes()
    with faults.at(0, faults.die, files=False, sql=True) as count:
        Store(path).close()
    after = stored.rows(path)
    assert count.calls > 20
    for number in range(1, count.calls + 1):
        for old in path.parent.glob("store.db*"):
            old.unlink()
        path.write_bytes(pristine)

        assert faults.forked(partial(die_opening, path, number)) == -signal.SIGKILL
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert stored.version(path) in (1, stored.SCHEMAS[-1])
        Store(path).close()
        assert stored.rows(path) == after
        assert stored.contains(after, before)
        # A WAL's files come and go with whoever looks.
        names = {left.name for left in path.parent.glob("store.db*") if not left.name.endswith(("-wal", "-shm"))}
        assert names == {"store.db", f"store.db.before-schema-{stored.SCHEMAS[-1]}"}
        assert stored.rows(path.with_name(f"store.db.before-schema-{stored.SCHEMAS[-1]}")) == before


def write_on_a_full_disk(world: World, disk: Path) -> None:
    """Try every write where there is no room, then some where there is again."""
    tried = world.copy(disk / "home")
    service = tried.open()
    filler = disks.fill(disk)
    before = stored.rows(tried.home.store)
    for name, write in WRITES.items():
        if name in ("submit", "first key", "remove an entry"):
            continue  # the first two ask for room before they write; a removal needs none where no journal does
        with pytest.raises(StoreFull, match=r"No disk space left.*nothing was changed"):
            write(tried, service)
        assert stored.rows(tried.home.store) == before, name
    assert [job.id for job in service.jobs()] == [world.failed, world.running, world.queued]
    service.store.check()
    filler.unlink()
    WRITES["ingest"](tried, service)
    service.cancel(world.queued)
    assert service.job(world.queued).state == "cancelled"
    assert service.latest_step(world.running) == 1
    service.close()
    tried.rows()


def test_a_disk_that_is_really_full_refuses_each_write_in_words_and_works_again_with_room(
    world: World, tmp_path: Path
) -> None:
    disks.on_a_small_disk(tmp_path / "disk", "2m", write_on_a_full_disk, world, tmp_path / "disk")
