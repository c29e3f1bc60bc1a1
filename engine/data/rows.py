"""Rows of a training dataset: their shapes, how a shape is recognised, and what makes a row unusable.

The rule: a row is judged here alone, when it is imported and when it is read for training, with the same words. A row
keeps the fields it came with; what a shape means for training is worked out by `for_training`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = "text"
MESSAGES = "messages"
SHAREGPT = "sharegpt"
PROMPT_COMPLETION = "prompt_completion"
ALPACA = "alpaca"
DPO = "dpo"
GRPO = "grpo"
MIXED = "mixed"  # of a dataset whose rows have several shapes

# The fields that make a row of each shape, in the order in which shapes are tried: the most telling first.
SHAPES: dict[str, tuple[str, ...]] = {
    MESSAGES: ("messages",),
    SHAREGPT: ("conversations",),
    DPO: ("prompt", "chosen", "rejected"),
    PROMPT_COMPLETION: ("prompt", "completion"),
    ALPACA: ("instruction", "output"),
    GRPO: ("prompt", "answer"),
    TEXT: ("text",),
}
# Shapes that compare answers or only grade them: there is no text in them to imitate.
PREFERENCE = (DPO, GRPO)
ROLES = ("system", "user", "assistant", "tool")

# Who speaks in a ShareGPT turn, by all the names that are about.
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
# Columns that hold structure: a table file can only spell it as JSON text.
STRUCTURED = ("messages", "conversations", "tools")


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


def detect(fields: Mapping[str, Any]) -> str:
    """Return the shape of a row. A field that is null counts only where nothing else fits. Raises RowError."""
    filled = {name for name, value in fields.items() if value is not None}
    for present in (filled, set(fields)):
        for shape, names in SHAPES.items():
            if present.issuperset(names):
                return shape
    known = "; ".join(", ".join(f'"{name}"' for name in names) for names in SHAPES.values())
    found = ", ".join(f'"{name}"' for name in fields) or "no field"
    raise RowError(f"has {found}; a row needs one of: {known}")


def _need(fields: Mapping[str, Any], shape: str) -> None:
    """Refuse a row that lacks what a shape it is said to have is made of."""
    missing = [name for name in SHAPES[shape] if fields.get(name) is None]
    if missing:
        found = ", ".join(f'"{name}"' for name in fields) or "no field"
        raise RowError(f'lacks "{missing[0]}", which the format {shape} needs; it has {found}')


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise RowError(f'"{name}" must be text, not {type(value).__name__}')
    if not value.strip():
        raise RowError(f'"{name}" is empty')
    return value


def _content(message: Mapping[str, Any], where: str) -> str | None:
    """Return a message's content as text; parts of text are put together. None where there is none."""
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise RowError(f"{where} holds a part of type {kind!r}; only text can be trained on")
        return "".join(part["text"] for part in content)
    if content is not None and not isinstance(content, str):
        raise RowError(f"{where} has no text as content")
    return content


def _tool_calls(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the calls of an assistant's message, with arguments as objects: templates write them out themselves."""
    calls = message.get("tool_calls")
    if not calls:
        return []
    if not isinstance(calls, list):
        raise RowError(f'{where}: "tool_calls" must be a list')
    read = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f'{where}: a tool call needs a "function" with a "name"')
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                raise RowError(f"{where}: the arguments of {function['name']} are not valid JSON") from None
        read.append({**call, "type": "function", "function": {**function, "arguments": arguments}})
    return read


def _messages(messages: Any, name: str, *, answered: bool = True) -> list[dict[str, Any]]:
    """Return messages as a template takes them: text as content, tool calls with objects. Raises RowError."""
    if not isinstance(messages, list) or not messages:
        raise RowError(f'"{name}" must be a list with at least one message')
    read: list[dict[str, Any]] = []
    for number, message in enumerate(messages, start=1):
        where = f"message {number}" if name == "messages" else f'message {number} of "{name}"'
        if not isinstance(message, dict):
            raise RowError(f"{where} must be an object with role and content")
        if message.get("role") not in ROLES:
            raise RowError(f"{where} has the role {message.get('role')!r}; known: {', '.join(ROLES)}")
        content, calls = _content(message, where), _tool_calls(message, where)
        if content is None and not calls:
            raise RowError(f"{where} has no text as content")
        told = {key: value for key, value in message.items() if value is not None}
        told |= {"content": content} if content is not None else {}
        read.append(told | ({"tool_calls": calls} if calls else {}))
    answers = [message for message in read if message["role"] == "assistant"]
    if answered and not any(answer.get("content", "").strip() or answer.get("tool_calls") for answer in answers):
        raise RowError("has no assistant message with text, so there is nothing to learn from it")
    return read


def _turns(turns: Any) -> list[dict[str, Any]]:
    """Return the turns of a ShareGPT conversation as messages. Raises RowError."""
    if not isinstance(turns, list) or not turns:
        raise RowError('"conversations" must be a list with at least one turn')
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise RowError(f'turn {number} must be an object with "from" and "value"')
        speaker = turn.get("from", turn.get("role"))
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise RowError(f"turn {number} is from {speaker!r}; known: {', '.join(SPEAKERS)}")
        value = turn.get("value", turn.get("content"))
        if not isinstance(value, str):
            raise RowError(f'turn {number} has no text as "value"')
        messages.append({"role": SPEAKERS[speaker], "content": value})
    return _messages(messages, "conversations")


def _alpaca(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an Alpaca row as a conversation: the input, where there is one, follows the instruction."""
    asked, given = _text(fields, "instruction"), fields.get("input")
    if given is not None and not isinstance(given, str):
        raise RowError(f'"input" must be text, not {type(given).__name__}')
    question = f"{asked}\n\n{given}" if given and given.strip() else asked
    return [{"role": "user", "content": question}, {"role": "assistant", "content": _text(fields, "output")}]


def _tools(fields: Mapping[str, Any]) -> list[Any]:
    tools = fields.get("tools")
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowError('"tools" must be a list of function schemas')
    return tools or []


def _parts(fields: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Check fields that may each be text or messages."""
    for name in names:
        if isinstance(fields[name], list):
            _messages(fields[name], name, answered=name != "prompt")
        else:
            _text(fields, name)


def _conversation(fields: Mapping[str, Any], shape: str) -> list[dict[str, Any]] | None:
    """Return the messages that a row comes to, None for shapes that are no conversation. Raises RowError."""
    if shape == MESSAGES:
        return _messages(fields["messages"], "messages")
    if shape == SHAREGPT:
        return _turns(fields["conversations"])
    return _alpaca(fields) if shape == ALPACA else None


def check(fields: Any, shape: str | None = None) -> str:
    """Return the shape of a row whose fields are usable; with `shape`, the row must have that one. Raises RowError."""
    if not isinstance(fields, dict):
        raise RowError(f"must be a JSON object, not {type(fields).__name__}")
    if shape:
        _need(fields, shape)
    shape = shape or detect(fields)
    if _conversation(fields, shape) is not None:
        _tools(fields)
    elif shape == DPO:
        _parts(fields, SHAPES[DPO])
    elif shape == GRPO:
        _parts(fields, ("prompt",))
        _text(fields, "answer")
    else:
        for name in SHAPES[shape]:
            _text(fields, name)
    return shape


def for_training(row: Row) -> Row:
    """Return a row in one of the three shapes that are trained on: messages, prompt_completion, text.

    Raises RowError for rows that compare or grade answers.
    """
    if row.shape in PREFERENCE:
        raise RowError(
            f"has the format {row.shape}, which a fine-tune cannot learn from: give rows with a text, messages, or a "
            "prompt and completion"
        )
    messages = _conversation(row.fields, row.shape)
    if messages is None:
        return row
    tools = _tools(row.fields)
    return Row(row.line, MESSAGES, {"messages": messages} | ({"tools": tools} if tools else {}))


def characters(row: Row) -> int:
    """Return the number of characters of a row's own text, without field names and markup."""

    def size(value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        return sum(size(message.get("content")) for message in value) if isinstance(value, list) else 0

    messages = _conversation(row.fields, row.shape)
    return size(messages) if messages is not None else sum(size(row.fields[name]) for name in SHAPES[row.shape])


def structured(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a table's row with the columns that hold JSON as text read; text that is no JSON stays as it is."""
    for name in STRUCTURED:
        value = fields.get(name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                fields = {**fields, name: json.loads(value)}
            except ValueError:
                continue
    return fields


def to_line(fields: Mapping[str, Any]) -> bytes:
    """Return a row as one line of JSONL. Raises RowError for what cannot be one."""
    try:
        return json.dumps(fields, ensure_ascii=False, default=_plain).encode() + b"\n"
    except UnicodeEncodeError:
        raise RowError(r"holds half of a surrogate pair (a lone \ud800 to \udfff), which is no text") from None
    except RecursionError:
        raise RowError("is nested too deeply") from None


def _plain(value: Any) -> Any:
    """Return what a table can hold and JSON cannot: bytes by their number, dates and decimals as text."""
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def parse(line: bytes, number: int, shape: str | None = None) -> Row | None:
    """Return the row in one line of JSONL, or None for a blank line. Raises RowError with the line's number."""
    if not line.strip():
        return None
    try:
        fields = json.loads(line)
        if b"\\ud" in line.lower():
            to_line(fields)
        return Row(number, check(fields, shape), fields)
    except RowError as error:
        raise RowError(error.message, number) from None
    except UnicodeDecodeError as error:
        raise RowError(f"is not UTF-8 text (byte {error.start})", number) from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"is not valid JSON ({error})", number) from None


def read(path: Path, shape: str | None = None) -> Iterator[Row]:
    """Yield the rows of a JSONL file. Raises RowError at the first that cannot be used."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = parse(line, number, shape)
            if row:
                yield row
