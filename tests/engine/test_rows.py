"""Rows of a dataset: each shape, and each fault with the line it stands in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import rows
from engine.rows import RowError

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({"text": "a"}, "text"),
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"messages": [{"role": "system", "content": "be kind"}, USER, ANSWER, USER, ANSWER]}, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"text": "a", "messages": [USER, ANSWER]}, "messages"),
        ({"text": "a", "id": 7, "more": None}, "text"),
    ],
)
def test_each_shape_is_recognised(fields: dict[str, Any], shape: str) -> None:
    row = rows.parse(json.dumps(fields).encode(), 4)
    assert row is not None
    assert (row.line, row.shape, row.fields) == (4, shape, fields)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "is not valid JSON"),
        (b'{"text": "a"} x', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"text": "\xff"}', "is not UTF-8 text"),
        (b'{"text": 1' + b"0" * 5000 + b"}", "is not valid JSON"),
        (b"[]", "must be a JSON object, not list"),
        (b'"text"', "must be a JSON object, not str"),
        (b"{}", "has no field"),
        (b'{"txt": "a"}', 'has "txt"; a row needs one of: "messages"; "prompt", "completion"; "text"'),
        (b'{"prompt": "a"}', 'has "prompt"'),
        (b'{"text": ""}', '"text" is empty'),
        (b'{"text": " \\n\\t"}', '"text" is empty'),
        (b'{"text": null}', '"text" must be text, not NoneType'),
        (b'{"text": 5}', '"text" must be text, not int'),
        (b'{"prompt": "a", "completion": " "}', '"completion" is empty'),
        (b'{"messages": []}', "at least one message"),
        (b'{"messages": {}}', "must be a list"),
        (b'{"messages": ["a"]}', "message 1 must be an object"),
        (b'{"messages": [{"role": "bot", "content": "a"}]}', "message 1 has the role 'bot'"),
        (b'{"messages": [{"role": ["user"], "content": "a"}]}', "message 1 has the role"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}', "message 2 has no text"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "no assistant message with text"),
        (b'{"messages": [{"role": "assistant", "content": " "}]}', "no assistant message with text"),
    ],
)
def test_each_fault_is_told_with_its_line(line: bytes, words: str) -> None:
    with pytest.raises(RowError) as caught:
        rows.parse(line, 17)
    assert str(caught.value).startswith("line 17: ")
    assert words in str(caught.value)


def test_text_that_no_tokenizer_can_encode_is_a_fault_of_its_line() -> None:
    # Half a surrogate pair is legal in JSON and has no UTF-8: tokenizers refuse it, long after the import.
    with pytest.raises(RowError, match="line 3"):
        rows.parse(b'{"text": "half an emoji: \\ud83d"}', 3)


def test_reading_skips_blank_lines_and_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n   \n{"text": "b"}')
    assert [(row.line, row.fields["text"]) for row in rows.read(path)] == [(1, "a"), (4, "b")]


def test_reading_stops_at_the_first_fault_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": }\n{"text": "b"}\n')
    with pytest.raises(RowError, match="line 3: is not valid JSON"):
        list(rows.read(path))
