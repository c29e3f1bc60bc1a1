"""From a dataset's tokens to the documents of one job: cut to seq_len, with labels, bad rows set apart.

The rule: every row ends up in documents or among the bad ones with its reason; which, is decided here alone.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from engine.trainer.data.batch import IGNORED, Document
from engine.trainer.data.tokens import Tokens

NOTHING = "has no token to train on"
NOTHING_LEFT = f"{NOTHING} after truncation to seq_len; raise seq_len"


@dataclass(frozen=True)
class Documents:
    """A dataset's documents in the file's order: document d begins at `starts[d]`, has `sizes[d]` tokens, and is of
    row `rows[d]`; `learn` says of each token whether it is trained, `targets` how many are. `bad` maps a row that
    cannot be used to its reason; `truncated` names the rows that lost their end.
    """

    tokens: Tokens
    learn: NDArray[np.bool_]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rows: NDArray[np.int64]
    bad: dict[int, str]
    truncated: NDArray[np.int64]
    targets: int

    def __len__(self) -> int:
        return len(self.starts)

    def document(self, number: int) -> Document:
        """Return one document."""
        part = slice(int(self.starts[number]), int(self.starts[number] + self.sizes[number]))
        ids = self.tokens.ids[part]
        labels = np.where(self.learn[part], ids, IGNORED)
        # A row that goes on has its other documents behind this one; any other has lost what does not fit.
        row = self.rows[number]
        cut = not self.tokens.goes_on[row] and self.tokens.sizes[row] > self.sizes[number]
        return Document(ids.tolist(), labels.tolist(), truncated=bool(cut))

    def of_rows(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the documents of these rows, in order."""
        return np.flatnonzero(np.isin(self.rows, chosen))

    def reasons(self) -> list[tuple[str, list[int]]]:
        """Return what is wrong with the bad rows: (reason, rows), the most frequent first."""
        counts = Counter(self.bad.values())
        found: dict[str, list[int]] = {reason: [] for reason, _ in counts.most_common()}
        for row, reason in self.bad.items():
            found[reason].append(row)
        return list(found.items())


def fit(tokens: Tokens, *, seq_len: int, everything: bool) -> Documents:
    """Cut rows to at most `seq_len` tokens: plain text goes on in further documents, any other row loses its end.

    `everything`: train on every token, not on answers alone. The first token of a document has no context to be
    predicted from, so it never counts.
    """
    learn = np.ones(len(tokens.ids), np.bool_) if everything else tokens.answers
    sizes = tokens.sizes
    pieces = np.where(tokens.goes_on, -(-sizes // seq_len), np.minimum(sizes, 1))
    rows = np.repeat(np.arange(len(sizes)), pieces)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    offset = number * seq_len
    starts = (tokens.ends - sizes)[rows] + offset
    held = np.minimum(sizes[rows] - offset, seq_len)

    before = np.concatenate([[0], np.cumsum(learn, dtype=np.int64)])
    targets = before[starts + held] - before[np.minimum(starts + 1, starts + held)]
    per_row = np.bincount(rows, weights=targets, minlength=len(sizes))
    cut = ~tokens.goes_on & (sizes > seq_len)
    bad: dict[int, str] = {}
    for row in np.flatnonzero((tokens.reasons > 0) | (per_row == 0)).tolist():
        fault = tokens.fault(row)
        if fault and not (everything and fault.whole):
            bad[row] = fault.message
        elif per_row[row] == 0:
            bad[row] = NOTHING_LEFT if cut[row] else NOTHING
    usable = ~np.isin(rows, list(bad))
    # A last piece of one token has nothing to be predicted from.
    kept = usable & ((held > 1) | (number == 0))
    cut[list(bad)] = False
    return Documents(
        tokens, learn, starts[kept], held[kept], rows[kept], bad, np.flatnonzero(cut), int(targets[kept].sum())
    )


class Packs(Sequence[list[Document]]):
    """Sequences of documents, made when they are asked for: token ids as Python numbers take ten times their bytes."""

    def __init__(self, documents: Documents, bins: Sequence[Sequence[int]]) -> None:
        self._documents = documents
        self._bins = bins

    def __len__(self) -> int:
        return len(self._bins)

    @overload
    def __getitem__(self, index: int) -> list[Document]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[Document]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """Return one sequence, or those of a slice."""
        if isinstance(index, slice):
            return [self._made(each) for each in self._bins[index]]
        return self._made(self._bins[index])

    def __iter__(self) -> Iterator[list[Document]]:
        return (self._made(each) for each in self._bins)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return id(self)

    def _made(self, numbers: Sequence[int]) -> list[Document]:
        return [self._documents.document(number) for number in numbers]

    def longest(self, count: int) -> list[list[Document]]:
        """Return the `count` sequences with the most tokens."""
        return [self[index] for index in heapq.nlargest(count, range(len(self)), key=self._size)]

    def _size(self, index: int) -> int:
        return int(self._documents.sizes[self._bins[index]].sum())

    def rows(self, index: int) -> list[int]:
        """Return the number of the row of each document of a sequence."""
        return [int(self._documents.rows[number]) for number in self._bins[index]]
