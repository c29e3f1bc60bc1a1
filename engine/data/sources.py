"""Reading rows from the files that people have: JSONL, JSON, CSV, TSV, Parquet, plain text, folders of these.

The rule: a file is read in pieces of a size that has a bound (.json, which cannot be, has one itself), and whatever is
wrong with it is told with the file's name and the row's own place in it. What a row must hold is not judged here but in
`engine.data.rows`.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, AnyStr, NamedTuple

from engine.data import rows
from engine.errors import InvalidData

# A quote that is never closed makes the rest of a table one cell; no honest cell is this long, and no honest line.
CELL_AT_MOST = 64 * 1024 * 1024  # bytes of a JSONL line, characters elsewhere
JSON_AT_MOST = 256 * 1024 * 1024  # bytes of a file that stands in memory whole, many times over once it is read
PARQUET_BATCH = 512
# Plain text becomes rows of whole paragraphs of about this many characters: about the 1,024 tokens of a sequence.
PASSAGE_CHARACTERS = 4000
PASSAGE_AT_MOST = 16 * PASSAGE_CHARACTERS  # where a text has no blank line for so long, a row ends with a line

# Files that speak about data: never rows.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|notice|changelog)(\.\w+)?|(dataset_infos?|dataset_dict|state)\.json", re.IGNORECASE
)
_HELD_OUT = {"test", "valid", "validation", "val", "dev", "eval"}


class Record(NamedTuple):
    """What stands at one place of a file: `fields` of a row, or the `raw` line of a JSONL file, or a `fault`.

    `place` counts lines in text files and rows elsewhere, from 1; `share` says how much of the file is read.
    """

    place: int
    share: float
    fields: Any = None
    raw: bytes = b""
    fault: str = ""


def _size(path: Path) -> int:
    return max(path.stat().st_size, 1)


def _each_line(path: Path, file: IO[AnyStr]) -> Iterator[AnyStr]:
    """Yield the lines of an open file. Raises InvalidData at one that is too long, before the whole of it is read."""
    for number in itertools.count(1):
        line = file.readline(CELL_AT_MOST + 1)
        if len(line) > CELL_AT_MOST:
            raise InvalidData(
                f"{path.name} line {number} is longer than {CELL_AT_MOST >> 20} MiB. Give each row a line of its own, "
                "or split it.",
                row=number,
            )
        if not line:
            return
        yield line


def _jsonl(path: Path) -> Iterator[Record]:
    done, total = 0, _size(path)
    with path.open("rb") as file:
        for number, line in enumerate(_each_line(path, file), start=1):
            done += len(line)
            yield Record(number, done / total, raw=line)


def _is_jsonl(path: Path) -> bool:
    """Say whether a .json file is in truth JSON lines: its first line is a whole object, and another follows.

    Lines are looked at in pieces: the only line of an array may be the whole file.
    """
    with path.open("rb") as file:
        filled = (piece for piece in iter(lambda: file.readline(CELL_AT_MOST + 1), b"") if piece.strip())
        try:
            first = next(filled, b"")
            whole = len(first) <= CELL_AT_MOST and isinstance(json.loads(first), dict)
            return whole and next(filled, None) is not None
        except (ValueError, RecursionError):
            return False


def _json(path: Path) -> Iterator[Record]:
    if _is_jsonl(path):
        yield from _jsonl(path)
        return
    if _size(path) > JSON_AT_MOST:
        raise InvalidData(
            f"{path.name} is larger than {JSON_AT_MOST >> 20} MiB, too large to be read as one JSON value. "
            "Save it as JSONL: one row a line."
        )
    try:
        value = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path.name} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path.name} is not valid JSON ({error}).") from None
    listed = value.get("data") if isinstance(value, dict) else value
    if not isinstance(listed, list):
        raise InvalidData(f'{path.name} holds neither an array of rows nor an object with one as "data".')
    for number, fields in enumerate(listed, start=1):
        yield Record(number, number / len(listed), fields=fields)


def _lines(path: Path, *, newline: str | None) -> tuple[IO[str], Callable[[], float]]:
    """Open a text file, without its byte order mark; also return what tells how much of it is read."""
    binary, total = path.open("rb"), _size(path)
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline), lambda: min(binary.tell() / total, 1.0)


def _cells(reader: Iterator[list[str]]) -> list[str] | str | None:
    """Return a table's next row, or what is wrong with it, or None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        return f"is not a row of a table ({error}); a quote may be left open"


def _table(path: Path, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(CELL_AT_MOST)
    file, share = _lines(path, newline="")
    with file:
        # Strict: otherwise a quote that is never closed silently takes in the rest of the file.
        reader = csv.reader(_each_line(path, file), delimiter=delimiter, strict=True)
        try:
            names = _cells(reader)
            if isinstance(names, str):
                raise InvalidData(f"{path.name}: the header {names}")
            twice = {name for name in names or [] if name and (names or []).count(name) > 1}
            if twice:
                raise InvalidData(f"{path.name} has two columns called '{min(twice)}'. Rename one.")
            begins = reader.line_num + 1
            while names and (cells := _cells(reader)) is not None:
                place, begins = begins, reader.line_num + 1
                if isinstance(cells, str):
                    yield Record(place, share(), fault=cells)
                elif len(cells) == len(names):
                    yield Record(place, share(), fields=rows.structured(dict(zip(names, cells, strict=True))))
                elif cells:
                    found = f"has {len(cells)} cell{'s' * (len(cells) != 1)}, the header has {len(names)}"
                    yield Record(place, share(), fault=found)
        except UnicodeDecodeError as error:
            raise InvalidData(
                f"{path.name} is not UTF-8 text (after line {reader.line_num}: {error.reason}). Save it as UTF-8."
            ) from None


def _csv(path: Path) -> Iterator[Record]:
    return _table(path, ",")


def _tsv(path: Path) -> Iterator[Record]:
    return _table(path, "\t")


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            total = max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(number, number / total, fields=rows.structured(fields))
    except (pyarrow.ArrowException, OSError) as error:
        # Arrow's own words go on for lines about its files.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        where = f" after row {number}" if number else ""
        raise InvalidData(f"{path.name} is not readable as Parquet{where} ({reason}). Copy or make it again.") from None


def _plain_text(path: Path) -> Iterator[Record]:
    """Yield passages: whole paragraphs, put together until they are long enough."""
    file, share = _lines(path, newline=None)
    passage: list[str] = []
    begins = size = number = 0
    with file:
        try:
            for number, line in enumerate(_each_line(path, file), start=1):
                blank = not line.strip()
                if passage and ((blank and size >= PASSAGE_CHARACTERS) or size >= PASSAGE_AT_MOST):
                    yield Record(begins, share(), fields={"text": "".join(passage).rstrip()})
                    passage, size = [], 0
                if passage or not blank:
                    begins = begins if passage else number
                    passage.append(line)
                    size += len(line)
        except UnicodeDecodeError as error:
            raise InvalidData(
                f"{path.name} is not UTF-8 text (after line {number}: {error.reason}). Save it as UTF-8."
            ) from None
    if passage:
        yield Record(begins, 1.0, fields={"text": "".join(passage).rstrip()})


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".txt": _plain_text,
    ".md": _plain_text,
}
LINES = (".jsonl", ".ndjson")  # these hold rows as the copy does
# In these a place is a line of the file, elsewhere it is the number of a row.
_BY_LINE = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".md")
KNOWN = ", ".join(READERS)


def where(path: Path, place: int) -> str:
    """Return how a person finds a place: `mine.csv line 7`, `mine.parquet row 7`."""
    by_line = path.suffix.lower() in _BY_LINE or (path.suffix.lower() == ".json" and _is_jsonl(path))
    return f"{path.name} {'line' if by_line else 'row'} {place}"


def records(path: Path) -> Iterator[Record]:
    """Yield what stands in a file, in its order. Raises InvalidData where the file as a whole cannot be read."""
    return READERS[path.suffix.lower()](path)


def bytes_expected(path: Path) -> int:
    """Return about how many bytes the rows of a file take as JSONL."""
    if path.suffix.lower() != ".parquet":
        return 2 * _size(path) if path.suffix.lower() in (".csv", ".tsv") else _size(path)
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
        return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    except (pyarrow.ArrowException, OSError):
        return _size(path)  # reading it will say what is wrong


def _split_words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z]+", path.stem.lower()))


def find(source: Path) -> tuple[list[Path], list[Path]]:
    """Return (the files to read, in order; files that are left out) of a file or folder.

    In a folder hidden files count for nothing; left out are files that speak about the data, those of other kinds,
    and, where files are named for a training split, those named for a held-out one. Raises InvalidData.
    """
    if source.is_file():
        if source.suffix.lower() not in READERS:
            kind = f"the suffix {source.suffix}" if source.suffix else "no suffix"
            raise InvalidData(f"{source.name} has {kind}; files of rows are {KNOWN}. Rename or convert it.")
        return [source], []
    if not source.is_dir():
        raise InvalidData(f"{source} does not exist. Give a file or folder of rows ({KNOWN}), or a hub name.")
    files = sorted(path for path in source.rglob("*") if path.is_file() and not _hidden(path.relative_to(source)))
    fit = [path for path in files if path.suffix.lower() in READERS and not _ABOUT.fullmatch(path.name)]
    if any("train" in _split_words(path) for path in fit):
        fit = [path for path in fit if "train" in _split_words(path) or not _split_words(path) & _HELD_OUT]
    if not fit:
        raise InvalidData(f"{source} holds no file of rows ({KNOWN}).")
    return fit, [path for path in files if path not in fit]


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
