"""Giving rows out again: the first few of a dataset, or all of them as JSONL, CSV or Parquet, piece by piece.

The rule: a dataset is never whole in memory; what a table cannot hold is told as JSON text, which an import of that
table reads back for the columns that hold structure.
"""

from __future__ import annotations

import csv as tables
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PIECE = 256 * 1024  # bytes given out at once
BATCH_ROWS, BATCH_BYTES = 1000, 8 * 1024 * 1024  # of a row group, whichever comes first
PREVIEW_BYTES = 4 * 1024 * 1024  # after which no further row is shown

Fields = dict[str, Any]


def _lines(path: Path) -> Iterator[bytes]:
    """Yield a copy's rows as lines; the blank ones stand for rows that were left out."""
    with path.open("rb") as file:
        yield from (line for line in file if line.strip())


def preview(path: Path, limit: int) -> list[Fields]:
    """Return the first `limit` rows, fewer where they are long; numbers that JSON has no word for are None."""
    shown: list[Fields] = []
    size = 0
    for line in _lines(path):
        if len(shown) == limit or size > PREVIEW_BYTES:
            break
        shown.append(json.loads(line, parse_constant=lambda name: None))
        size += len(line)
    return shown


def jsonl(path: Path) -> Iterator[bytes]:
    """Yield the rows as they came, one line each."""
    gathered = bytearray()
    for line in _lines(path):
        gathered += line if line.endswith(b"\n") else line + b"\n"
        if len(gathered) >= PIECE:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


def _text(value: Any) -> str:
    """Return a table's cell: text as it is, nothing as nothing, all else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def csv(path: Path) -> Iterator[bytes]:
    """Yield the rows as a table with a column for every field that any row has, in the order in which they come up."""
    names = list(dict.fromkeys(name for line in _lines(path) for name in json.loads(line)))
    text = io.StringIO()
    writer = tables.writer(text, lineterminator="\n")
    writer.writerow(names)
    for line in _lines(path):
        fields = json.loads(line)
        writer.writerow([_text(fields.get(name)) for name in names])
        if text.tell() >= PIECE:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def _batches(path: Path) -> Iterator[list[Fields]]:
    batch: list[Fields] = []
    size = 0
    for line in _lines(path):
        batch.append(json.loads(line))
        size += len(line)
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Sink(io.RawIOBase):
    """What a writer of Parquet, which never goes back, has written since it was last emptied."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._written = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: Any) -> int:
        self._held += data
        self._written += len(data)
        return len(data)

    def taken(self) -> bytes:
        """Empty it."""
        data = bytes(self._held)
        self._held.clear()
        return data


def parquet(path: Path) -> Iterator[bytes]:
    """Yield the rows as Parquet: plain values and lists of plain objects by their types, all else as JSON text."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = _schema(path)
    sink = _Sink()
    with ParquetWriter(sink, schema) as writer:
        for batch in _batches(path):
            columns = [
                pyarrow.array([_cell(row.get(field.name), field.type) for row in batch], field.type) for field in schema
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))
            yield sink.taken()
    yield sink.taken()


def _cell(value: Any, kind: Any) -> Any:
    return _text(value) if str(kind) == "string" and value is not None else value


def _schema(path: Path) -> Any:
    """Return a type for every field that any row has, wide enough for all its values."""
    import pyarrow

    kinds: dict[str, Any] = {}
    for batch in _batches(path):
        for name in dict.fromkeys(name for row in batch for name in row):
            kind = _kind([row.get(name) for row in batch])
            kinds[name] = _wider(kinds[name], kind) if name in kinds else kind
    return pyarrow.schema(list(kinds.items()))


def _kind(values: list[Any]) -> Any:
    """Return the type that holds `values`: that of text where they have no plain one in common."""
    import pyarrow

    return _or_text(lambda: pyarrow.array(values).type)


def _wider(first: Any, second: Any) -> Any:
    """Return a type that holds what two hold."""
    import pyarrow

    pair = [pyarrow.schema([("both", kind)]) for kind in (first, second)]
    return _or_text(lambda: pyarrow.unify_schemas(pair, promote_options="permissive").field(0).type)


def _or_text(kind: Callable[[], Any]) -> Any:
    import pyarrow

    try:
        found = kind()
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
        return pyarrow.string()
    return found if _is_plain(found) else pyarrow.string()


def _is_plain(kind: Any) -> bool:
    """Say whether a type is a scalar, a list of scalars, or a list of objects of scalars."""
    from pyarrow import types

    def scalar(one: Any) -> bool:
        return bool(types.is_null(one) or types.is_primitive(one) or types.is_string(one))

    if not types.is_list(kind):
        return scalar(kind)
    item = kind.value_type
    return scalar(item) or (types.is_struct(item) and bool(len(item)) and all(scalar(field.type) for field in item))
