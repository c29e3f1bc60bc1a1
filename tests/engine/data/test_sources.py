"""Files of rows: every kind is read as it is, and what is wrong with one is told by its name and place."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from engine.data import importing, rows, sources
from engine.errors import InvalidData

TEXTS = [{"text": "one"}, {"text": "two, with a comma"}, {"text": 'three\nlines and a "quote"'}]


def texts(path: Path) -> list[tuple[int, str]]:
    """Return (place, text) of each row of a file."""
    found = []
    for record in sources.records(path):
        assert not record.fault
        row = rows.parse(record.raw, record.place) if record.raw else None
        fields = row.fields if row else record.fields
        if fields:
            found.append((record.place, fields["text"]))
    return found


def write_csv(path: Path, delimiter: str = ",", end: str = "\n", begin: bytes = b"") -> Path:
    lines = [f"id{delimiter}text"]
    lines += [f'{n}{delimiter}"{row["text"]}"'.replace('"quote"', '""quote""') for n, row in enumerate(TEXTS)]
    path.write_bytes(begin + (end.join(lines) + end).encode())
    return path


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "json with data", "lines in .json", "parquet"])
def test_rows_are_the_same_in_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind.split(maxsplit=1)[0]}"
    if kind == "json":
        path.write_text(json.dumps(TEXTS, indent=1))
    elif kind == "json with data":
        path.write_text(json.dumps({"version": 1, "data": TEXTS}))
    elif kind == "parquet":
        write_parquet(path, {"text": [row["text"] for row in TEXTS]})
    else:
        path = path.with_suffix(".json") if kind == "lines in .json" else path
        path.write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    assert texts(path) == [(place, row["text"]) for place, row in enumerate(TEXTS, start=1)]


@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_a_table_is_read_with_its_quotes_and_told_by_lines(
    tmp_path: Path, suffix: str, delimiter: str, end: str, begin: bytes
) -> None:
    path = write_csv(tmp_path / f"rows{suffix}", delimiter, end, begin)
    assert texts(path) == [(2, "one"), (3, "two, with a comma"), (4, 'three\nlines and a "quote"')]


def test_columns_that_hold_messages_as_json_are_read_as_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    quoted = json.dumps(messages).replace('"', '""')
    path = tmp_path / "rows.csv"
    path.write_text(f'messages,id\n"{quoted}",1\nno json,2\n')
    first, second = [record.fields["messages"] for record in sources.records(path)]
    assert first == messages
    assert second == "no json"


def test_nested_columns_of_parquet_are_rows_with_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write_parquet(tmp_path / "rows.parquet", {"messages": [messages], "text": pyarrow.nulls(1)})
    (record,) = sources.records(path)
    assert rows.check(record.fields) == "messages"


def test_plain_text_becomes_passages_of_whole_paragraphs_and_loses_no_word(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {n} " + "speaks on " * 150 for n in range(9)]
    path = tmp_path / "book.txt"
    path.write_bytes(b"\xef\xbb\xbf\r\n\r\n" + "\r\n\r\n".join(paragraphs).encode())
    found = texts(path)
    assert "\n\n".join(text for _, text in found).split() == " ".join(paragraphs).split()
    assert [place for place, _ in found] == [3, 9, 15]
    assert all(text.startswith("Paragraph") and "\r" not in text for _, text in found)


def test_a_text_without_blank_lines_is_cut_at_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.md"
    path.write_text("a line of the log\n" * 10_000)
    found = texts(path)
    assert len(found) > 1
    assert all(len(text) < sources.PASSAGE_AT_MOST + 18 and text.endswith("log") for _, text in found)


def test_ragged_rows_of_a_table_are_faults_of_their_lines_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n1,one\n2\n3,a,b\n4,four\n")
    found = [(record.place, record.fault or record.fields["text"]) for record in sources.records(path)]
    assert found == [
        (2, "one"),
        (3, "has 1 cell, the header has 2"),
        (4, "has 3 cells, the header has 2"),
        (5, "four"),
    ]
    assert sources.where(path, 3) == "rows.csv line 3"


def test_a_quote_that_is_left_open_is_told_by_the_line_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id,text\n1,one\n2,"two\n3,three\n')
    *_, last = sources.records(path)
    assert last.place == 3
    assert "a quote may be left open" in last.fault


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.json", b"[{", "rows.json is not valid JSON"),
        ("rows.json", b"[\xff]", "rows.json is not UTF-8 text"),
        ("rows.json", b'"text"', "neither an array of rows nor an object"),
        ("rows.json", b'{"data": 5}', "neither an array of rows nor an object"),
        ("rows.json", b"[" * 100_000, "rows.json is not valid JSON"),
        ("rows.csv", b"text,text\na,b\n", "rows.csv has two columns called 'text'"),
        ("rows.csv", b"text\nfine\n\xff\n", "rows.csv is not UTF-8 text"),
        ("rows.tsv", b'"text\n', "rows.tsv: the header is not a row of a table"),
        ("rows.txt", b"fine\n\xff\n", "rows.txt is not UTF-8 text"),
        ("rows.parquet", b"PAR1 and no more", "rows.parquet is not readable as Parquet"),
        ("rows.parquet", b"", "rows.parquet is not readable as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidData, match=words):
        list(sources.records(path))


def test_a_parquet_file_that_is_damaged_inside_says_how_far_it_goes(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", {"text": [f"text number {n} " * 50 for n in range(2000)]})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    path.write_bytes(content)
    with pytest.raises(InvalidData, match=r"rows\.parquet is not readable as Parquet.*Copy or make it again"):
        list(sources.records(path))


@pytest.mark.parametrize(("name", "words"), [("rows.xlsx", "the suffix .xlsx"), ("rows", "no suffix")])
def test_an_unknown_kind_of_file_is_refused_with_the_known_ones(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(InvalidData, match=rf"{name} has {words}; files of rows are \.jsonl, .*\.parquet"):
        sources.find(tmp_path / name)


def names(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_a_folder_is_read_in_order_without_what_only_speaks_about_it(tmp_path: Path) -> None:
    for name in ("b.csv", "a.jsonl", "sub/c.txt", "README.md", "picture.png", ".hidden.jsonl", ".git/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    fit, left_out = sources.find(tmp_path)
    assert names(fit, tmp_path) == ["a.jsonl", "b.csv", "sub/c.txt"]
    assert names(left_out, tmp_path) == ["README.md", "picture.png"]


def test_held_out_splits_are_left_out_beside_a_training_split_and_only_then(tmp_path: Path) -> None:
    for name in ("test-00000.jsonl", "data.jsonl", "validation.jsonl"):
        (tmp_path / name).write_text("x")
    assert len(sources.find(tmp_path)[0]) == 3
    (tmp_path / "train-00000-of-00001.jsonl").write_text("x")
    fit, left_out = sources.find(tmp_path)
    assert names(fit, tmp_path) == ["data.jsonl", "train-00000-of-00001.jsonl"]
    assert names(left_out, tmp_path) == ["test-00000.jsonl", "validation.jsonl"]


def test_a_folder_without_rows_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="holds no file of rows"):
        sources.find(tmp_path)
    with pytest.raises(InvalidData, match="nowhere does not exist"):
        sources.find(tmp_path / "nowhere")


def test_large_files_are_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "a row of text\n" * 60_000)
    records = sources.records(path)
    shares = [next(records).share for _ in range(2)]
    assert shares[-1] < 0.2  # what is buffered, not the whole
    assert importing.survey(path).rows == 60_000


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_a_file_of_one_endless_line_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(sources, "CELL_AT_MOST", 100_000)
    monkeypatch.setattr(sources, "JSON_AT_MOST", 1_000_000)
    path = tmp_path / f"rows{suffix}"
    begin, line = ("", 1) if suffix == ".json" else ("text\n" if suffix != ".jsonl" else '{"text": "one"}\n', 2)
    path.write_text(begin + '[{"text": "' + "x" * 10_000_000 + '"}]')
    tracemalloc.start()
    try:
        with pytest.raises(InvalidData) as caught:
            list(sources.records(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    if suffix == ".json":
        assert str(caught.value).startswith("rows.json is larger than 0 MiB")
        assert "Save it as JSONL" in str(caught.value)
    else:
        assert str(caught.value).startswith(f"rows{suffix} line {line} is longer than")
        assert caught.value.row == line


def test_what_is_just_short_enough_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = json.dumps({"text": "x" * 1000}) + "\n"
    monkeypatch.setattr(sources, "CELL_AT_MOST", len(row))
    monkeypatch.setattr(sources, "JSON_AT_MOST", 10 * len(row))
    lines, array = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_text(20 * row)
    assert len(texts(lines)) == 20
    array.write_text(20 * row)  # lines under another name: read in pieces, so however large
    assert len(texts(array)) == 20
    array.write_text("[" + ",".join([row.strip()] * 9) + "]")  # in one line, longer than one of JSONL may be
    assert len(texts(array)) == 9
    array.write_text("[" + ",".join([row.strip()] * 10) + "]")
    with pytest.raises(InvalidData, match="too large to be read as one JSON value"):
        texts(array)
