"""How long a dataset's rows are in a model's tokens, from a sample: what a recommendation is sized by.

The rule: a sample is read by position and counted with the model's own tokenizer, so the answer takes well under a
second whatever the size of the file; the training itself counts exactly.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

SAMPLE_ROWS = 400
WHOLE_BYTES = 200_000  # a file up to this size is read whole
# Text beyond this is scaled up from its beginning: one book of a row must not take seconds.
COUNTED_CHARACTERS = 20_000
LINE_BYTES = 8_000_000
# English in tokenizers of today; the starter's 4,096 words trained on its own domain reach 3.9.
CHARACTERS_PER_TOKEN = 4.0
# What a chat template puts around a message (ChatML: two markers, the role, two line ends); the starter's: 5.4.
TOKENS_PER_MESSAGE = 5
# Fields of a row that are no text to learn from.
UNCOUNTED = frozenset({"role", "from", "name", "id"})


@dataclass(frozen=True)
class RowLengths:
    """The lengths in tokens of a sample of rows, sorted; `tokenizer` says whether the model's own counted them."""

    sample: tuple[int, ...]
    tokenizer: bool

    @property
    def mean(self) -> float:
        """Mean length of a row, in tokens."""
        return sum(self.sample) / len(self.sample)

    def percentile(self, share: float) -> int:
        """Return the length, in tokens, that `share` (0 to 1) of the rows do not exceed."""
        return self.sample[min(int(share * len(self.sample)), len(self.sample) - 1)]

    def within(self, tokens: int) -> float:
        """Return the share of the rows that have at most `tokens` tokens, 0 to 1."""
        return bisect_right(self.sample, tokens) / len(self.sample)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a row, whatever its shape."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in UNCOUNTED:
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _messages(row: Any) -> int:
    """Return how many messages a template makes of a row: those it lists, two for a question and its answer."""
    if not isinstance(row, Mapping) or "text" in row:
        return 0
    return max((len(value) for value in row.values() if isinstance(value, list)), default=2)


def _sample_lines(path: Path) -> list[bytes]:
    """Return all lines of a small file, else about SAMPLE_ROWS spread evenly over it.

    The line after each position is taken, not the one that holds it: long lines would be found too often.
    """
    size = path.stat().st_size
    lines: dict[int, bytes] = {}
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return [line for line in file if line.strip()]
        for number in range(SAMPLE_ROWS):
            file.seek(number * size // SAMPLE_ROWS)
            if number:
                file.readline(LINE_BYTES)
            start = file.tell()
            line = file.readline(LINE_BYTES)
            if line.strip():
                lines[start] = line
    return list(lines.values())


def _counter(tokenizer: Path) -> Any:
    """Return the tokenizer in a file, or None where it cannot be used here."""
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(tokenizer))
    except Exception:  # noqa: BLE001  (the Rust library raises bare Exception; characters are counted instead)
        return None


@lru_cache(maxsize=32)
def _measured(dataset: Path, stamp: tuple[int, int], tokenizer: Path) -> RowLengths | None:
    """Count a sample. `stamp` (size, time of change) is part of the cache's key alone."""
    texts, messages = [], []
    for line in _sample_lines(dataset):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # what is wrong with a row is said at its import
        texts.append("\n".join(_texts(row)))
        messages.append(_messages(row))
    if not texts:
        return None
    counter = _counter(tokenizer)
    beginnings = [text[:COUNTED_CHARACTERS] for text in texts]
    if counter is None:
        counts = [len(text) / CHARACTERS_PER_TOKEN for text in beginnings]
    else:
        encoded = counter.encode_batch(beginnings, add_special_tokens=False)
        counts = [float(len(one.ids)) for one in encoded]
    lengths = [
        max(round(count * len(text) / max(len(beginning), 1)) + TOKENS_PER_MESSAGE * number, 1)
        for count, text, beginning, number in zip(counts, texts, beginnings, messages, strict=True)
    ]
    return RowLengths(tuple(sorted(lengths)), tokenizer=counter is not None)


def measure(dataset: Path, model: Path) -> RowLengths | None:
    """Return the row lengths of a JSONL file under the tokenizer of a model folder, or None where it cannot be read."""
    try:
        facts = dataset.stat()
        return _measured(dataset, (facts.st_size, facts.st_mtime_ns), model / "tokenizer.json")
    except OSError:
        return None
