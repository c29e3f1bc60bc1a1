"""A worker's journal: append-only lines of JSON, each with sequence number, fence and CRC.

The rule: a line counts only when it is whole (ends in a newline) and its CRC holds. A reader never raises
for what a crash left behind and never skips a good line.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import atomic

# A line is BODY + SUFFIX with the CRC-32 of BODY, both of fixed form, so that a reader need not encode again.
_SUFFIX_LENGTH = len(',"crc":"00000000"}')
READ_AT_MOST = 4 * 1024 * 1024


@dataclass(frozen=True)
class Record:
    """One line. `kind` is state, point, log, event, checkpoint, resume, result, model or end."""

    seq: int
    fence: int
    ts: float
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """What a read found: the records, the offset after the last whole line, and how many lines were damaged."""

    records: list[Record]
    offset: int
    damaged: int


def encode(record: Record) -> bytes:
    """Return the line for `record`, newline included."""
    fields = {"seq": record.seq, "fence": record.fence, "ts": record.ts, "kind": record.kind, "data": record.data}
    body = json.dumps(fields, separators=(",", ":")).encode()[:-1]
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


def decode(line: bytes) -> Record | None:
    """Return the record in `line` (without its newline), or None where the line is damaged."""
    body = line[:-_SUFFIX_LENGTH]
    if line[-_SUFFIX_LENGTH:] != b',"crc":"%08x"}' % zlib.crc32(body):
        return None
    try:
        fields = json.loads(body + b"}")
        return Record(fields["seq"], fields["fence"], fields["ts"], fields["kind"], fields["data"])
    except (ValueError, KeyError, TypeError):
        return None


def read(path: Path, offset: int) -> Batch:
    """Read whole lines after byte `offset`, about 4 MiB of them at most; a missing file is an empty one."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(READ_AT_MOST)
            if len(data) == READ_AT_MOST:
                data += file.readline()  # a line is read whole, however long
    except FileNotFoundError:
        return Batch([], offset, 0)
    end = data.rfind(b"\n") + 1
    decoded = [decode(line) for line in data[:end].split(b"\n")[:-1]]
    records = [record for record in decoded if record is not None]
    return Batch(records, offset + end, len(decoded) - len(records))


class JournalWriter:
    """Appends to one journal file; one process, one fence."""

    def __init__(self, path: Path, fence: int, clock: Callable[[], float] = time.time) -> None:
        """Open `path`, cutting off a torn last line that an earlier crash left."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._fence = fence
        self._clock = clock
        self._seq = 0
        whole = 0
        while (batch := read(path, whole)).offset > whole:
            whole = batch.offset
            self._seq = max([self._seq, *(record.seq for record in batch.records)])
        atomic.step(os.ftruncate, self._descriptor, whole)

    def append(self, kind: str, data: dict[str, Any], *, durable: bool = False) -> None:
        """Append one record; with `durable`, return only when it is on the disk."""
        self.append_all([(kind, data)], durable=durable)

    def append_all(self, entries: Iterable[tuple[str, dict[str, Any]]], *, durable: bool = False) -> None:
        """Append records in one write, so that a reader sees all of them or waits for all."""
        lines = []
        now = self._clock()
        for kind, data in entries:
            self._seq += 1
            lines.append(encode(Record(self._seq, self._fence, now, kind, data)))
        self._write(b"".join(lines))
        if durable:
            atomic.sync(self._descriptor)

    def _write(self, data: bytes) -> None:
        """Append `data`; where that fails half-way (a full disk), leave the whole lines and no torn one.

        Whole lines stay, for a reader may have taken them already.
        """
        start = os.fstat(self._descriptor).st_size
        try:
            atomic.write_all(self._descriptor, data)
        except OSError:
            written = os.fstat(self._descriptor).st_size - start
            atomic.step(os.ftruncate, self._descriptor, start + data.rfind(b"\n", 0, written) + 1)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
