"""What a model will see of a dataset: the first batch with its mask, the rows' lengths, the rows that stop a job.

The rule: the trainer's own code says so, in a process of its own; here stand its question and its answer.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TRAINED, CONTEXT, PADDING = "trained", "context", "padding"


@dataclass(frozen=True)
class Request:
    """What the trainer is asked: files and settings. `format` is the shape of all rows, or `mixed`."""

    dataset_path: str
    dataset_sha256: str
    format: str
    cache_path: str
    model_path: str
    seq_len: int | None = None  # None: the default of a finetune, as of the others
    loss_on: str | None = None
    system_prompt: str | None = None


@dataclass(frozen=True)
class Stretch:
    """Tokens in a row that have the same use: trained, context or padding."""

    use: str
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class DocumentView:
    """One row in a sequence, as tokens; `line` is its line in the dataset, `truncated` whether it lost its end."""

    line: int
    tokens: int
    truncated: bool
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class SequenceView:
    """One packed sequence of the batch; `padding` is what fills it up to the longest."""

    documents: tuple[DocumentView, ...]
    padding: Stretch


@dataclass(frozen=True)
class BadRows:
    """Rows that cannot be trained on for the same reason; the first few by their `places`: line 7, or a.csv line 7."""

    reason: str
    rows: int
    lines: tuple[int, ...]
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bucket:
    """How many rows have from `low` up to `high` tokens."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True)
class Inspection:
    """A dataset as a job with these settings would use it, with bad rows left out; lengths in tokens, rows whole.

    `stops`: why a job that leaves no bad row out would end at once; empty where it would not. `batch` is what the model
    sees in step 1 with seed 0.
    """

    format: str
    seq_len: int
    rows: int
    training_rows: int
    held_out_rows: int
    bad_rows: int
    bad: tuple[BadRows, ...]
    stops: str
    truncated_rows: int
    lost_tokens: int
    tokens: int
    trained_tokens: int
    p50: int
    p95: int
    p99: int
    max: int
    histogram: tuple[Bucket, ...]
    sequences: int
    fill: float
    batch: tuple[SequenceView, ...]
    notices: tuple[str, ...]

    @property
    def trained_share(self) -> float:
        """The share of the tokens that is trained, 0 to 1."""
        return self.trained_tokens / max(self.tokens, 1)

    @property
    def truncated_share(self) -> float:
        """The share of the usable rows that lost their end, 0 to 1."""
        return self.truncated_rows / max(self.rows - self.bad_rows, 1)


def place(line: int, files: Sequence[Sequence[Any]]) -> str:
    """Return how a person finds a line of a dataset: in its own file where it is a folder's."""
    if not files:
        return f"line {line}"
    name, first = files[bisect_right([begins for _, begins in files], line) - 1]
    return f"{name} line {line - first + 1}"


def _stretch(fields: dict[str, Any]) -> Stretch:
    return Stretch(**(fields | {"ids": tuple(fields["ids"])}))


def _sequence(fields: dict[str, Any]) -> SequenceView:
    views = [
        DocumentView(**(each | {"stretches": tuple(map(_stretch, each["stretches"]))})) for each in fields["documents"]
    ]
    return SequenceView(tuple(views), _stretch(fields["padding"]))


def read(text: str, files: Sequence[Sequence[Any]]) -> Inspection:
    """Read what the trainer answered. `files`: of a folder that was imported, each with the line at which it begins."""
    fields = json.loads(text)
    fields["bad"] = tuple(
        BadRows(each["reason"], each["rows"], tuple(each["lines"]), tuple(place(line, files) for line in each["lines"]))
        for each in fields["bad"]
    )
    fields["histogram"] = tuple(Bucket(**each) for each in fields["histogram"])
    fields["batch"] = tuple(_sequence(each) for each in fields["batch"])
    fields["notices"] = tuple(fields["notices"])
    return Inspection(**fields)
