"""A journal that is killed, or refused by the disk, at any of its calls: what was acknowledged is there, whole."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from engine import journal
from engine.journal import JournalLost, JournalWriter
from tests.crash import faults

BATCH = [("point", {"step": step, "text": "x" * 50}) for step in (2, 3)]


def tell(path: Path) -> None:
    """Open the journal and append two records, then one, each time until they are on the disk."""
    writer = JournalWriter(path, fence=2)
    writer.append_all(BATCH, durable=True)
    writer.append("point", {"step": 4}, durable=True)
    writer.close()


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """A journal of one whole line and half of another."""
    path = tmp_path / "torn.jsonl"
    writer = JournalWriter(path, fence=1)
    for step in (1, 2):
        writer.append("point", {"step": step})
    writer.close()
    os.truncate(path, path.stat().st_size - 10)
    return path


def steps(path: Path) -> list[int]:
    """Return the steps told, having checked that no whole line is damaged."""
    batch = journal.read(path, 0)
    assert batch.damaged == 0
    return [record.data["step"] for record in batch.records]


def total(torn: Path) -> faults.Count:
    """Count the calls of an undisturbed `tell`."""
    path = torn.with_name("counted.jsonl")
    shutil.copy(torn, path)
    with faults.at(0, faults.die) as count:
        tell(path)
    assert steps(path) == [1, 2, 3, 4]
    return count


@pytest.mark.parametrize("action", [faults.die, faults.die_within, faults.die_after])
def test_killed_at_any_call_a_journal_has_a_prefix_of_whole_lines_and_goes_on(
    torn: Path, action: faults.Action
) -> None:
    calls = total(torn).calls
    assert calls >= 7  # open, sync of the folder, cut, two writes, two syncs
    found = []
    for number in range(1, calls + 1):
        path = torn.with_name(f"{number}.jsonl")
        shutil.copy(torn, path)

        def killed(path: Path = path, number: int = number) -> None:
            with faults.at(number, action):
                tell(path)

        assert faults.forked(killed) == -9
        told = steps(path)
        assert told == [1, 2, 3, 4][: len(told)]
        found.append(len(told))
        writer = JournalWriter(path, fence=3)
        writer.append("point", {"step": 9})
        writer.close()
        assert steps(path) == [*told, 9]
    assert found == sorted(found)
    assert {1, 3} <= set(found)
    assert found[-1] == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("onward", [False, True])
def test_refused_at_any_call_a_journal_names_itself_and_loses_no_line_before_or_after(
    torn: Path, number: int, onward: bool
) -> None:
    calls = total(torn).calls
    for at in range(1, calls + 1):
        path = torn.with_name(f"{at}.jsonl")
        shutil.copy(torn, path)
        with faults.at(at, faults.fail(number), onward=onward), pytest.raises(OSError, match=os.strerror(number)):
            tell(path)
        before = steps(path)
        assert before == [1, 2, 3, 4][: len(before)]
        tell(path)
        assert steps(path) == [*before, 2, 3, 4]


@pytest.mark.parametrize("onward", [False, True])
def test_a_writer_that_was_refused_goes_on_behind_the_last_whole_line(tmp_path: Path, onward: bool) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path, fence=1)
    writer.append("point", {"step": 1})
    real = os.write

    def half(call: object, arguments: tuple[int, bytes], options: dict[str, object]) -> int:
        # The disk takes some of the first line; with `onward` it does not let that be undone either.
        if call is os.write:
            real(arguments[0], bytes(arguments[1])[:20])
        raise OSError(errno.EIO, "Input/output error")

    with faults.at(1, half, onward=onward), pytest.raises(OSError, match=r"Input/output error.*journal\.jsonl"):
        writer.append_all(BATCH)
    writer.append("point", {"step": 9})
    writer.close()
    assert steps(path) == [1, 9]


def test_a_journal_that_was_removed_under_its_worker_is_not_written_to_any_more(tmp_path: Path) -> None:
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    writer = JournalWriter(folder / "journal.jsonl", fence=1)
    writer.append("point", {"step": 1})
    shutil.rmtree(folder)
    with pytest.raises(JournalLost, match=r"attempt-1/journal\.jsonl was removed.*nobody waits"):
        writer.append("point", {"step": 2})


def test_a_journal_that_was_cut_under_its_worker_is_not_written_to_any_more(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path, fence=1)
    writer.append("point", {"step": 1})
    whole = path.stat().st_size
    writer.append("point", {"step": 2})
    os.truncate(path, whole + 10)
    with pytest.raises(JournalLost, match="was cut"):
        writer.append("point", {"step": 3})
    assert steps(path) == [1]
