"""A store whose content was spoilt by a disk or a copy: it says so, and what to do."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from store import Store, StoreDamaged, StoreError, jobs, memory_peaks, rescue, telemetry
from store.library import Database
from store.memory_peaks import Peak
from store.telemetry import Point
from tests.store import stored
from tests.store.entries import new_job

SIZE = 4096  # of a page


def pages(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[start : start + SIZE] for start in range(0, len(content), SIZE)]


def overwrite(path: Path, page: int) -> None:
    """Spoil one page (from 0), as a failing disk would."""
    with path.open("r+b") as file:
        file.seek(page * SIZE)
        file.write(b"\xa5" * SIZE)


def spoil(path: Path, table: str = "metrics") -> None:
    """Spoil the page at which a table begins."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table]).fetchone()
    overwrite(path, page - 1)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A store with a spoilt page, and beside it the copy from before its last migration."""
    path = stored.unpack(stored.SCHEMAS[-2], tmp_path)
    Store(path).close()
    spoil(path)
    return path


def test_the_check_names_the_newest_copy_and_the_way_to_save_what_is_readable(damaged: Path) -> None:
    store = Store(damaged)
    with pytest.raises(StoreDamaged) as found:
        store.check()
    store.close()
    text = str(found.value)
    assert f"{damaged} is damaged" in text
    assert f"newest backup is {damaged}.before-schema-{stored.SCHEMAS[-1]}" in text
    assert f"-m store.rescue {damaged} " in text
    assert ".recover" in text
    assert "\n" not in text


def test_a_statement_that_meets_the_damage_says_the_same(damaged: Path) -> None:
    store = Store(damaged)
    with pytest.raises(StoreDamaged, match=r"newest backup is .*\.recover"):
        store.read().execute("SELECT sum(loss) FROM metrics").fetchone()
    store.close()


def test_without_a_copy_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    Store(path).close()
    spoil(path)
    store = Store(path)
    with pytest.raises(StoreDamaged, match="no backup beside it"):
        store.check()
    store.close()


def test_a_damaged_store_is_not_migrated(tmp_path: Path) -> None:
    path = stored.unpack(stored.SCHEMAS[-2], tmp_path)
    spoil(path)
    with pytest.raises(StoreError, match="damaged"):
        Store(path)
    assert stored.version(path) == stored.SCHEMAS[-2]
    assert not list(tmp_path.glob("*.before-schema-*"))


def test_the_remedy_that_the_error_names_saves_all_that_was_not_overwritten(damaged: Path) -> None:
    before = stored.rows(stored.unpack(stored.SCHEMAS[-2], damaged.parent / "undamaged"))
    spoilt = damaged.read_bytes()
    store = Store(damaged)
    with pytest.raises(StoreDamaged) as found:
        store.check()
    store.close()
    command = str(found.value).split("can be read: ")[1].split(" (or with")[0]
    told = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stderr
    assert "metrics: 0 rows; the rest is lost" in told
    assert "jobs: 10 rows\n" in told
    assert damaged.read_bytes() == spoilt

    (damaged.parent / "rescued.db").replace(damaged)
    again = Store(damaged)
    again.check()
    again.close()
    now = stored.rows(damaged)
    assert now["metrics"] == []
    for table in set(before) - {"metrics", "attempts", "sqlite_sequence"}:
        assert [old.items() <= new.items() for old, new in zip(before[table], now[table], strict=True)].count(
            False
        ) == 0


def test_rows_on_both_sides_of_the_damage_are_saved_and_none_of_a_job_that_is_lost(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    with store.write() as db:
        job = new_job(db)
        telemetry.add_log_lines(db, job.id, [(1.0, "train", "x" * 1000)] * 200)
        orphan = new_job(db)
    store.close()
    path = tmp_path / "store.db"
    lines = [number for number, page in enumerate(pages(path)) if page.count(b"x") > 2000]
    overwrite(path, lines[len(lines) // 2])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("DELETE FROM jobs WHERE id = ?", [orphan.id])
    saved = {part.table: part for part in rescue.rescue(path, tmp_path / "rescued.db")}
    assert 190 < saved["log_lines"].rows < 200
    assert not saved["log_lines"].whole
    rows = stored.rows(tmp_path / "rescued.db")
    numbers = [row["seq"] for row in rows["log_lines"]]
    assert (numbers[0], numbers[-1]) == (1, 200)
    assert [row["job_id"] for row in rows["events"]] == [job.id]
    Store(tmp_path / "rescued.db").close()
    with pytest.raises(FileExistsError):
        rescue.rescue(path, tmp_path / "rescued.db")


MARK = "spoilt-by-the-test"
MANY = 3000

# A write that fills pages with MARK, and a read that meets the first of its rows on another page than the last.
READS: dict[str, tuple[Callable[[Database, str], object], Callable[[Database, str], object]]] = {
    "points": (
        lambda db, job_id: telemetry.add_points(db, job_id, 1, [_point(step) for step in range(MANY)]),
        telemetry.points,
    ),
    "log lines": (
        lambda db, job_id: telemetry.add_log_lines(db, job_id, [(1.0, "train", MARK * 9)] * 1500),
        telemetry.log_lines,
    ),
    "events": (
        lambda db, job_id: [jobs.add_event(db, job_id, "oom", {MARK: MARK * 9}, now=1.0) for _ in range(MANY)],
        jobs.events,
    ),
    "peaks": (
        lambda db, job_id: [
            memory_peaks.record(db, Peak(f"{job_id}-{number}", MARK, "mode", 1, 1, -number)) for number in range(MANY)
        ],
        lambda db, job_id: memory_peaks.ratios(db, MARK, "mode", newest=MANY),
    ),
}


def _point(step: int) -> tuple[Any, ...]:
    return tuple(Point(step, MARK, 1.0, 1.0, cycle=0))


@pytest.mark.parametrize("what", READS)
def test_damage_far_from_the_first_row_says_the_same(tmp_path: Path, what: str) -> None:
    path = tmp_path / "store.db"
    write, read = READS[what]
    store = Store(path)
    with store.write() as db:
        job = new_job(db)
        write(db, job.id)
    assert read(store.read(), job.id)
    store.close()
    full = [number for number, page in enumerate(pages(path)) if page.count(MARK.encode()) > 10]
    overwrite(path, full[3 * len(full) // 4])
    again = Store(path)
    with pytest.raises(StoreDamaged, match=r"no backup beside it|\.recover"):
        read(again.read(), job.id)
    again.close()


def test_a_text_that_was_spoilt_is_damage_too_whatever_it_says(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    with store.write() as db:
        job = new_job(db)
        db.conn.execute(
            "INSERT INTO log_lines (job_id, seq, ts, stream, text) VALUES (?, 1, 1.0, 'train', CAST(? AS TEXT))",
            [job.id, b"the disk is full and locked \xa5"],
        )
    with pytest.raises(StoreDamaged, match="a text in it"):
        telemetry.log_lines(store.read(), job.id)
    store.close()


def test_a_supervisor_that_follows_an_unclean_stop_refuses_a_damaged_store_in_one_line_every_time(
    damaged: Path,
) -> None:
    sign = damaged.parent / "supervisor.json"
    sign.write_text("{}")
    for _ in range(2):  # the sign of the unclean stop outlives a start that came to nothing
        done = subprocess.run(
            [sys.executable, "-m", "fusion_tui.daemon", "--port", "1"],
            env={**os.environ, "FUSION_HOME": str(damaged.parent)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert "is damaged" in last
        assert ".recover" in last
        assert "newest backup is" in last
        assert sign.exists()
