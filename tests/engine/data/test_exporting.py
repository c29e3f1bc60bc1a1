"""Rows given out again: what comes back from each format is what went in, and a preview is whole JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.data import exporting, importing

CHAT = {
    "messages": [
        {"role": "user", "content": 'two\nlines, "quoted"'},
        {"role": "assistant", "content": "é", "weight": 1},
    ]
}
CALL = {
    "messages": [
        {"role": "user", "content": "what time is it?"},
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {"zone": 1}}}],
        },
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "Noon."},
    ],
    "tools": [{"type": "function", "function": {"name": "clock"}}],
}
TEXTS = [{"text": f"row {n}", "n": n, "share": n / 2, "odd": bool(n % 2)} for n in range(1500)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


def whole(pieces: Iterator[bytes]) -> bytes:
    return b"".join(pieces)


def brought_back(folder: Path, kind: str, data: bytes) -> list[dict[str, Any]]:
    """Import an exported file and return the rows of the copy."""
    file = folder / f"again.{kind}"
    file.write_bytes(data)
    _, copy = importing.import_rows(file, folder / f"copy-{kind}")
    return [json.loads(line) for line in copy.read_text().splitlines() if line]


def test_jsonl_has_every_row_as_it_came_and_no_blank_line(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", [CHAT, CALL])
    lines = whole(exporting.jsonl(file)).decode().splitlines()
    assert [json.loads(line) for line in lines] == [CHAT, CALL]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_chats_come_back_from_a_table(tmp_path: Path, kind: str):
    file = write(tmp_path / "rows.jsonl", [CHAT, CALL])
    export = {"csv": exporting.csv, "parquet": exporting.parquet}[kind]
    found = [
        {name: value for name, value in row.items() if value}
        for row in brought_back(tmp_path, kind, whole(export(file)))
    ]
    assert found == [CHAT, CALL]


def test_plain_values_have_their_types_in_parquet_over_many_row_groups(tmp_path: Path):
    import pyarrow.parquet

    rows = [*TEXTS, {"text": "last", "late": [1, 2], "odd": None}]
    file = tmp_path / "out.parquet"
    file.write_bytes(whole(exporting.parquet(write(tmp_path / "rows.jsonl", rows))))
    table = pyarrow.parquet.read_table(file)
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {"text": "string", "n": "int64", "share": "double", "odd": "bool", "late": "list<element: int64>"}
    assert pyarrow.parquet.ParquetFile(file).num_row_groups == 2
    found = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    assert found == [*TEXTS, {"text": "last", "late": [1, 2]}]


@pytest.mark.parametrize(
    "values",
    [[1, "a"], [{"a": 1}, {"b": 2}], [{}, {}], [[{}]], [[1], ["a"]], [2**80, 1], [True, 2], [[[1]], [[2]]], [1.5, "x"]],
)
def test_values_without_a_plain_type_in_common_are_json_text_in_parquet(tmp_path: Path, values: list[Any]):
    import pyarrow.parquet

    rows = [{"text": "x", "odd": value} for value in values]
    file = tmp_path / "out.parquet"
    file.write_bytes(whole(exporting.parquet(write(tmp_path / "rows.jsonl", rows))))
    found = pyarrow.parquet.read_table(file).to_pylist()
    assert [row["odd"] for row in found] == [v if isinstance(v, str) else json.dumps(v) for v in values]


def test_lists_of_plain_objects_keep_their_structure_in_parquet(tmp_path: Path):
    import pyarrow.parquet

    file = tmp_path / "out.parquet"
    file.write_bytes(whole(exporting.parquet(write(tmp_path / "rows.jsonl", [CHAT]))))
    assert pyarrow.parquet.read_table(file).to_pylist()[0]["messages"][1] == CHAT["messages"][1]


def test_a_csv_has_a_column_for_every_field_of_any_row(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", [{"text": "a", "n": 1}, {"text": "b", "late": None, "on": True}])
    assert whole(exporting.csv(file)).decode() == "text,n,late,on\na,1,,\nb,,,true\n"


def test_a_preview_shows_the_first_rows_and_stops_where_they_are_long(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", TEXTS)
    assert exporting.preview(file, 3) == TEXTS[:3]
    long = write(tmp_path / "long.jsonl", [{"text": "x" * 3_000_000}] * 5)
    assert len(exporting.preview(long, 5)) == 2
    (tmp_path / "odd.jsonl").write_text('{"text": "a", "loss": NaN, "most": -Infinity}\n')
    assert exporting.preview(tmp_path / "odd.jsonl", 5) == [{"text": "a", "loss": None, "most": None}]
