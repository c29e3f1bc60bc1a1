"""A worker's journal: append-only lines of JSON, each with sequence number, fence and CRC.

The rule: a line counts only when it is whole (ends in a newline) and its CRC holds. A reader never raises
for what a crash left behind and never skips a good line.
"""

from __future__ import annotations

import gc
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from engine import atomic

# A line is BODY + SUFFIX with the CRC-32 of BODY, both of fixed form, so that a reader need not encode again.
_SUFFIX_LENGTH = len(',"crc":"00000000"}')
READ_AT_MOST = 4 * 1024 * 1024


class Record(NamedTuple):
    """One line; a tuple, for there are millions. `kind` names one of the writers in `engine.trainer.reporter`."""

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


_whole = itemgetter(*Record._fields)


def encode(record: Record) -> bytes:
    """Return the line for `record`, newline included."""
    fields = {"seq": record.seq, "fence": record.fence, "ts": record.ts, "kind": record.kind, "data": record.data}
    body = json.dumps(fields, separators=(",", ":")).encode()[:-1]
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


def decode(line: bytes) -> Record | None:
    """Return the record in `line` (without its newline), or None where the line is damaged."""
    return decode_all([line])[0]


def decode_all(lines: Sequence[bytes]) -> list[Record | None]:
    """Return the record in each line, None where it is damaged."""
    bodies = [line[:-_SUFFIX_LENGTH] for line in lines]
    crc = zlib.crc32
    if all(line[-_SUFFIX_LENGTH:] == b',"crc":"%08x"}' % crc(body) for line, body in zip(lines, bodies, strict=True)):
        try:
            # All of them as one text: a third of the time that they take one by one.
            return [Record._make(_whole(fields)) for fields in _parse(bodies)]
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # a line that is whole and yet no record, or that only Python's own parser reads
    return [_decode(line, body) for line, body in zip(lines, bodies, strict=True)]


def _parse(bodies: Sequence[bytes]) -> list[dict[str, Any]]:
    from pydantic_core import from_json

    text = b"[%s]" % b",".join([body + b"}" for body in bodies])
    # The collector would look through the growing list again and again, in search of rings that JSON cannot have.
    collecting = gc.isenabled()
    gc.disable()
    try:
        parsed: list[dict[str, Any]] = from_json(text)
    finally:
        if collecting:
            gc.enable()
    return parsed


def _decode(line: bytes, body: bytes) -> Record | None:
    if line[-_SUFFIX_LENGTH:] != b',"crc":"%08x"}' % zlib.crc32(body):
        return None
    try:
        fields = json.loads(body + b"}")
        return Record(fields["seq"], fields["fence"], fields["ts"], fields["kind"], fields["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def read(path: Path, offset: int) -> Batch:
    """Read whole lines after byte `offset`, about 4 MiB of them at most; a missing file is an empty one.

    A file that ends before `offset` was cut by someone else: that counts as one damaged line, and what its worker
    writes next begins at the new end.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < offset:
                return Batch([], size, 1)
            file.seek(offset)
            data = file.read(READ_AT_MOST)
            if len(data) == READ_AT_MOST:
                data += file.readline()  # a line is read whole, however long
    except FileNotFoundError:
        return Batch([], offset, 0)
    end = data.rfind(b"\n") + 1
    decoded = decode_all(data[:end].split(b"\n")[:-1])
    records = [record for record in decoded if record is not None]
    return Batch(records, offset + end, len(decoded) - len(records))


class JournalLost(Exception):
    """A worker's own journal was removed or cut under it: whatever it does, nobody will hear of it."""


class JournalWriter:
    """Appends to one journal file; one process, one fence."""

    def __init__(self, path: Path, fence: int, clock: Callable[[], float] = time.time) -> None:
        """Open `path`, cutting off a torn last line that an earlier crash left. Raises OSError."""
        self._path = path
        self._fence = fence
        self._clock = clock
        self._seq = 0
        self._whole = 0  # where the last whole line ends
        with self._naming():
            self._descriptor = atomic.step(os.open, path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                atomic.sync_path(path.parent)
                while (batch := read(path, self._whole)).offset > self._whole:
                    self._whole = batch.offset
                    self._seq = max([self._seq, *(record.seq for record in batch.records)])
                self._cut_torn_line()
            except BaseException:
                self.close()
                raise

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the file in the system's errors: a call on a descriptor does not."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def append(self, kind: str, data: dict[str, Any], *, durable: bool = False) -> None:
        """Append one record; with `durable`, return only when it is on the disk. Raises OSError, JournalLost."""
        self.append_all([(kind, data)], durable=durable)

    def append_all(self, entries: Iterable[tuple[str, dict[str, Any]]], *, durable: bool = False) -> None:
        """Append records in one write, so that a reader sees all of them or waits for all.

        Raises OSError, after which whole lines may be there and no torn one counts; JournalLost.
        """
        lines = []
        now = self._clock()
        for kind, data in entries:
            self._seq += 1
            lines.append(encode(Record(self._seq, self._fence, now, kind, data)))
        with self._naming():
            self._write(b"".join(lines))
            if durable:
                atomic.sync(self._descriptor)

    def _write(self, data: bytes) -> None:
        """Append `data`; where that fails half-way (a full disk), leave the whole lines and no torn one.

        Whole lines stay, for a reader may have taken them already.
        """
        self._look()
        self._cut_torn_line()
        try:
            atomic.write_all(self._descriptor, data)
        except OSError:
            written = os.fstat(self._descriptor).st_size - self._whole
            self._whole += data.rfind(b"\n", 0, written) + 1
            with suppress(OSError):  # the next append tries again
                self._cut_torn_line()
            raise
        self._whole += len(data)

    def _look(self) -> None:
        """Raise JournalLost where what was written is not there any more."""
        found = os.fstat(self._descriptor)
        if found.st_nlink == 0:
            raise JournalLost(f"The journal {self._path} was removed under its worker: nobody waits for this run.")
        if found.st_size < self._whole:
            raise JournalLost(f"The journal {self._path} was cut under its worker: what the run told is lost.")

    def _cut_torn_line(self) -> None:
        if os.fstat(self._descriptor).st_size > self._whole:
            atomic.step(os.ftruncate, self._descriptor, self._whole)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
