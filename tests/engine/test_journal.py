"""The journal: whole, true lines and nothing else, whatever a crash left behind."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import journal
from engine.journal import JournalWriter, Record

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def written(path: Path, count: int = 5, **more: Any) -> bytes:
    """Write `count` records and return the file's bytes."""
    writer = JournalWriter(path, fence=3, clock=lambda: 12.5)
    for number in range(1, count + 1):
        writer.append("point", {"step": number, "text": 'a "quoted" line\nand ünïcode', **more})
    writer.close()
    return path.read_bytes()


def steps(path: Path, offset: int = 0) -> list[int]:
    return [record.data["step"] for record in journal.read(path, offset).records]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file grow past `size` bytes, as a full disk would: first a short write, then an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(st.integers(0, 2**53), st.integers(0, 2**31), st.floats(0, 1e10), st.text(), st.dictionaries(st.text(), VALUES))
@settings(deadline=None)
def test_any_record_comes_back_as_it_was_written(
    seq: int, fence: int, ts: float, kind: str, data: dict[str, Any]
) -> None:
    record = Record(seq, fence, ts, kind, data)
    line = journal.encode(record)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert journal.decode(line[:-1]) == record


def test_records_come_back_in_order_and_reading_goes_on_from_an_offset(path: Path) -> None:
    size = len(written(path))
    batch = journal.read(path, 0)
    assert [(r.seq, r.fence, r.ts, r.kind) for r in batch.records] == [(n, 3, 12.5, "point") for n in range(1, 6)]
    assert (batch.offset, batch.damaged) == (size, 0)
    assert journal.read(path, size) == journal.Batch([], size, 0)
    assert steps(path, path.read_bytes().index(b"\n") + 1) == [2, 3, 4, 5]


def test_a_missing_journal_is_an_empty_one(path: Path) -> None:
    assert journal.read(path, 0) == journal.Batch([], 0, 0)


def test_a_last_record_cut_at_any_byte_is_waited_for_and_costs_no_other(path: Path) -> None:
    whole = written(path, 3)
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        batch = journal.read(path, 0)
        assert [record.seq for record in batch.records] == [1, 2], cut
        assert (batch.offset, batch.damaged) == (last, 0), cut
        # The rest arrives: the same reader goes on from its offset and misses nothing.
        path.write_bytes(whole)
        assert [record.seq for record in journal.read(path, batch.offset).records] == [3], cut


def test_a_writer_that_opens_a_torn_journal_cuts_the_tear_and_counts_on(path: Path) -> None:
    whole = written(path, 3)
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        writer = JournalWriter(path, fence=4)
        assert path.read_bytes() == whole[:last], cut
        writer.append("point", {"step": 9})
        writer.close()
        assert [(r.seq, r.fence) for r in journal.read(path, 0).records] == [(1, 3), (2, 3), (3, 4)], cut


def test_numbers_go_on_after_reopening_a_whole_journal(path: Path) -> None:
    before = written(path, 3)
    after = written(path, 2)
    assert after.startswith(before)
    assert [record.seq for record in journal.read(path, 0).records] == [1, 2, 3, 4, 5]


def test_any_flipped_bit_of_a_line_is_detected_and_the_lines_around_it_are_kept(path: Path) -> None:
    whole = written(path, 3)
    begin = whole.index(b"\n") + 1
    end = whole.index(b"\n", begin)
    for position in range(begin, end):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            batch = journal.read(path, 0)
            assert [record.seq for record in batch.records] == [1, 3], (position, bit)
            # A byte that became a newline makes two damaged lines of one.
            assert batch.damaged == 1 + (flipped[position] == 0x0A), (position, bit)
            assert batch.offset == len(whole)


@pytest.mark.parametrize("line", [b"", b"{}", b"null", b"\xff" * 40, b'[1,2],"crc":"00000000"}', b" " * 17])
def test_rubbish_is_counted_as_damaged_and_never_raises(path: Path, line: bytes) -> None:
    whole = written(path, 2)
    path.write_bytes(line + b"\n" + whole)
    batch = journal.read(path, 0)
    assert [record.seq for record in batch.records] == [1, 2]
    assert batch.damaged == 1


def test_writes_that_take_a_few_bytes_at_a_time_lose_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:7])))
    written(path)
    assert steps(path) == [1, 2, 3, 4, 5]


def test_records_that_belong_together_are_written_by_one_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = os.write
    writer = JournalWriter(path, fence=1)
    monkeypatch.setattr(os, "write", lambda descriptor, data: calls.append(1) or real(descriptor, data))
    writer.append_all(("point", {"step": n}) for n in range(10))
    writer.close()
    assert len(calls) == 1
    assert steps(path) == list(range(10))


def test_a_journal_longer_than_one_read_is_read_whole_in_several(path: Path) -> None:
    written(path, 5, padding="x" * (journal.READ_AT_MOST // 3))
    found, offset = [], 0
    while (batch := journal.read(path, offset)).offset > offset:
        found += [record.seq for record in batch.records]
        offset = batch.offset
    assert found == [1, 2, 3, 4, 5]
    writer = JournalWriter(path, fence=1)
    writer.append("point", {"step": 6})
    writer.close()
    assert [record.seq for record in journal.read(path, offset).records] == [6]


def test_a_record_longer_than_one_read_stops_neither_reader_nor_writer(path: Path) -> None:
    whole = written(path, 2, padding="x" * (journal.READ_AT_MOST + 10))
    JournalWriter(path, fence=1).close()
    assert path.stat().st_size == len(whole)
    assert journal.read(path, 0).offset > 0


def test_a_record_written_after_a_full_disk_is_not_lost_with_the_torn_one(path: Path) -> None:
    size = len(written(path, 2))
    writer = JournalWriter(path, fence=3)
    with file_size_limit(size + 20), pytest.raises(OSError, match="File too large"):
        writer.append("point", {"step": 3})
    writer.append("end", {"step": 4})
    writer.close()
    assert steps(path) == [1, 2, 4]


def test_the_journal_is_readable_by_its_user_alone(path: Path) -> None:
    written(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_one_line_that_only_pythons_parser_reads_costs_the_lines_around_it_nothing(path: Path) -> None:
    writer = JournalWriter(path, fence=1)
    for text in ("before", "half a pair: \ud800", "after"):
        writer.append("log", {"text": text})
    writer.close()
    assert [record.data["text"] for record in journal.read(path, 0).records] == [
        "before",
        "half a pair: \ud800",
        "after",
    ]


def test_a_file_that_ends_before_the_offset_counts_as_one_damaged_line_and_is_read_from_its_end(path: Path) -> None:
    size = len(written(path, 2))
    assert journal.read(path, size + 100) == journal.Batch([], size, 1)
