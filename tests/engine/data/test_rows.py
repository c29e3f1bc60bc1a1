"""Rows of a dataset: each shape, and each fault with the line it stands in."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from engine.data import rows
from engine.data.rows import Row, RowError

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({"text": "a"}, "text"),
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"messages": [{"role": "system", "content": "be kind"}, USER, ANSWER, USER, ANSWER]}, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"text": "a", "messages": [USER, ANSWER]}, "messages"),
        ({"text": "a", "id": 7, "more": None}, "text"),
        ({"text": "a", "messages": None}, "text"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "hi"}]}]}, "messages"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, "sharegpt"),
        ({"conversations": [USER, ANSWER]}, "sharegpt"),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"instruction": "a", "input": "", "output": "b", "text": "all of it"}, "alpaca"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "dpo"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, "dpo"),
        ({"prompt": "a", "answer": "42"}, "grpo"),
        ({"prompt": [USER], "answer": "42"}, "grpo"),
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
        (b'{"txt": "a"}', 'has "txt"; a row needs one of: "messages"; "conversations"; "prompt", "chosen", "rejected"'),
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
        (b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "message 1 holds a part of type 'image'"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "message 1 has no text as content"),
        (b'{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', 'a tool call needs a "function" with a "name"'),
        (
            b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}',
            "the arguments of f are not valid JSON",
        ),
        (b'{"messages": [{"role": "assistant", "content": "a"}], "tools": "no"}', '"tools" must be a list'),
        (b'{"conversations": []}', '"conversations" must be a list with at least one turn'),
        (b'{"conversations": [{"from": "bot", "value": "a"}]}', "turn 1 is from 'bot'; known: system, human"),
        (b'{"conversations": [{"from": "gpt"}]}', "turn 1 has no text"),
        (b'{"conversations": [{"from": "human", "value": "a"}]}', "no assistant message with text"),
        (b'{"instruction": "a", "input": 5, "output": "b"}', '"input" must be text, not int'),
        (b'{"instruction": "a", "output": ""}', '"output" is empty'),
        (b'{"prompt": "a", "chosen": "b", "rejected": [1]}', 'message 1 of "rejected" must be an object'),
        (b'{"prompt": "a", "chosen": [{"role": "user", "content": "a"}], "rejected": "c"}', "no assistant message"),
        (b'{"prompt": "a", "answer": 4}', '"answer" must be text, not int'),
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


def test_a_format_that_is_forced_is_taken_though_another_is_there() -> None:
    line = json.dumps({"text": "a", "messages": [USER, ANSWER]}).encode()
    row = rows.parse(line, 1, "text")
    assert row is not None
    assert row.shape == "text"


def test_a_format_that_is_forced_wrongly_is_refused_by_row_and_field() -> None:
    with pytest.raises(RowError, match=r'^line 8: lacks "completion", which the format prompt_completion needs;'):
        rows.parse(b'{"prompt": "a", "answer": "b"}', 8, "prompt_completion")


def as_messages(fields: dict[str, Any], shape: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rows.for_training(Row(1, shape, fields)).fields["messages"]
    return found


def test_alpaca_becomes_a_question_with_its_input_and_an_answer() -> None:
    fields = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert as_messages(fields, "alpaca") == [
        {"role": "user", "content": "Add.\n\n1 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert as_messages(fields | {"input": " "}, "alpaca")[0]["content"] == "Add."


def test_sharegpt_becomes_messages_whoever_it_calls_the_speakers() -> None:
    speakers = ["system", "human", "gpt", "tool", "assistant"]
    turns = [{"from": speaker, "value": speaker} for speaker in speakers]
    roles = [message["role"] for message in as_messages({"conversations": turns}, "sharegpt")]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


def test_arguments_of_tool_calls_become_objects_and_tools_stay() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = Row(1, "messages", {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}], "tools": tools})
    fields = rows.for_training(row).fields
    assert fields["tools"] == tools
    assert fields["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert "content" not in fields["messages"][1]


@pytest.mark.parametrize("shape", rows.PREFERENCE)
def test_rows_that_compare_or_grade_are_none_to_learn_from_by_imitation(shape: str) -> None:
    with pytest.raises(RowError, match=f"has the format {shape}, which a fine-tune cannot learn from"):
        rows.for_training(Row(1, shape, {"prompt": "a", "chosen": "b", "rejected": "c", "answer": "d"}))


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"text": "four", "id": "no text"}, 4),
        ({"messages": [USER, ANSWER]}, 7),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, 7),
        ({"instruction": "ab", "input": "c", "output": "d"}, 2 + 2 + 1 + 1),
        ({"prompt": "ab", "chosen": [ANSWER], "rejected": "c"}, 2 + 5 + 1),
    ],
)
def test_characters_are_those_of_the_rows_own_text(fields: dict[str, Any], count: int) -> None:
    assert rows.characters(Row(1, rows.detect(fields), fields)) == count


def test_what_json_cannot_hold_is_written_as_text() -> None:
    line = rows.to_line({"text": "ü", "image": b"12345", "day": date(2020, 1, 2)})
    assert json.loads(line) == {"text": "ü", "image": "<5 bytes>", "day": "2020-01-02"}
    with pytest.raises(RowError, match="surrogate"):
        rows.to_line({"text": "\ud83d"})
