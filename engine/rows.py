"""Rows of a training dataset: their shapes, how a shape is recognised, and what makes a row unusable.

The rule: a row is judged here alone, when it is imported and when it is read for training, with the same words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = "text"
MESSAGES = "messages"
PROMPT_COMPLETION = "prompt_completion"

# The fields that make a row of each shape, in the order in which shapes are tried.
SHAPES: dict[str, tuple[str, ...]] = {
    MESSAGES: ("messages",),
    PROMPT_COMPLETION: ("prompt", "completion"),
    TEXT: ("text",),
}
ROLES = ("system", "user", "assistant", "tool")


class RowError(ValueError):
    """A row that cannot be used, with its line number (the first is 1) where it is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.message = message


@dataclass(frozen=True)
class Row:
    """One usable row: its line number, its shape, its fields."""

    line: int
    shape: str
    fields: dict[str, Any]


def detect(fields: dict[str, Any]) -> str:
    """Return the shape of a row. Raises RowError."""
    for shape, names in SHAPES.items():
        if all(name in fields for name in names):
            return shape
    known = "; ".join(", ".join(f'"{name}"' for name in names) for names in SHAPES.values())
    found = ", ".join(f'"{name}"' for name in fields) or "no field"
    raise RowError(f"has {found}; a row needs one of: {known}")


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise RowError(f'"{name}" must be text, not {type(value).__name__}')
    if not value.strip():
        raise RowError(f'"{name}" is empty')
    return value


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise RowError('"messages" must be a list with at least one message')
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise RowError(f"message {number} must be an object with role and content")
        if message.get("role") not in ROLES:
            raise RowError(f"message {number} has the role {message.get('role')!r}; known: {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise RowError(f"message {number} has no text as content")
    answers = [message for message in messages if message["role"] == "assistant"]
    if not any(message["content"].strip() for message in answers):
        raise RowError("has no assistant message with text, so there is nothing to learn from it")


def check(fields: Any) -> str:
    """Return the shape of a row whose fields are usable. Raises RowError."""
    if not isinstance(fields, dict):
        raise RowError(f"must be a JSON object, not {type(fields).__name__}")
    shape = detect(fields)
    if shape == MESSAGES:
        _check_messages(fields["messages"])
    else:
        for name in SHAPES[shape]:
            _text(fields, name)
    return shape


def _check_encodable(fields: Any) -> None:
    """Refuse half of a surrogate pair: JSON can spell it, no text can hold it."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RowError(r"holds half of a surrogate pair (a lone \ud800 to \udfff), which is no text") from None


def parse(line: bytes, number: int) -> Row | None:
    """Return the row in one line of JSONL, or None for a blank line. Raises RowError with the line's number."""
    if not line.strip():
        return None
    try:
        fields = json.loads(line)
        if b"\\ud" in line.lower():
            _check_encodable(fields)
        return Row(number, check(fields), fields)
    except RowError as error:
        raise RowError(error.message, number) from None
    except UnicodeDecodeError as error:
        raise RowError(f"is not UTF-8 text (byte {error.start})", number) from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"is not valid JSON ({error})", number) from None


def read(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file. Raises RowError at the first that cannot be used."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = parse(line, number)
            if row:
                yield row
