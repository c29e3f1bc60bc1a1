"""Datasets as a worker reads them: one, or several in their order as if they were one.

The rule: each dataset's tokens are kept by themselves, so that one cache serves every job that reads it, alone or with
others; where there are several, a row is named with its dataset.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from engine.data import rows
from engine.data.rows import Row, RowError
from engine.order import Data, Order
from engine.trainer.data import token_cache, tokens
from engine.trainer.data.render import PLAIN, Manner
from engine.trainer.data.tokens import Tokens

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Source:
    """A dataset as a worker is told of it: the JSONL file, its SHA-256, the shape that all rows have (or `mixed`),
    and the folder of its cached tokens, where they are kept. `manner` is how its rows are read."""

    path: Path
    sha256: str = ""
    format: str = rows.MIXED
    cache: Path | None = None
    name: str = ""
    manner: Manner = PLAIN

    @classmethod
    def of(cls, data: Data) -> Source:
        """Return a dataset of an order."""
        cache = Path(data.cache_path) if data.cache_path else None
        return cls(Path(data.path), data.sha256, data.format, cache, data.name)

    @property
    def form(self) -> str | None:
        """The shape that all rows have; None: each row's own is detected."""
        return None if self.format == rows.MIXED else self.format

    def read(self, manner: Manner) -> Source:
        """Return the same dataset, read in this manner."""
        return replace(self, manner=manner)

    def tokens(self, tokenizer: Any, tell: Tell, log: Tell) -> Tokens:
        """Return all rows as tokens, kept ones where there are. `tell` hears how far it is, `log` what is worth a line.

        Raises ValueError for a tokenizer that cannot be used.
        """
        folder = None
        if self.cache:
            name = token_cache.key(tokenizer, data_sha256=self.sha256, form=self.form, manner=self.manner)
            folder = self.cache / name

        def make() -> Tokens:
            return tokens.tokenise(self.path, tokenizer, form=self.form, manner=self.manner, tell=tell)

        return token_cache.through(folder, make, log)

    def row(self, number: int, found: Tokens) -> Row:
        """Return one row again, in a shape that is trained on. Raises RowError."""
        line = int(found.lines[number])
        with self.path.open("rb") as file:
            file.seek(int(found.places[number]))
            row = rows.parse(file.readline(), line, self.form)
        if row is None:
            raise RowError("is not there any more: the dataset's file was changed", line)
        return self.manner.row(row)


@dataclass(frozen=True)
class Several:
    """Datasets that are read one after the other; their shapes may differ."""

    parts: tuple[Source, ...]

    def read(self, manner: Manner) -> Several:
        """Return the same datasets, read in this manner."""
        return Several(tuple(part.read(manner) for part in self.parts))

    def tokens(self, tokenizer: Any, tell: Tell, log: Tell) -> Tokens:
        """Return the rows of all, as `Source.tokens` does."""
        return tokens.joined([(part.name, self._tokens(part, tokenizer, tell, log)) for part in self.parts])

    @staticmethod
    def _tokens(part: Source, tokenizer: Any, tell: Tell, log: Tell) -> Tokens:
        return part.tokens(
            tokenizer, lambda text: tell(f"{part.name}: {text}"), lambda text: log(f"{part.name}: {text}")
        )

    def row(self, number: int, found: Tokens) -> Row:
        """Return one row again, as `Source.row` does."""
        part = bisect_right([first for _, first in found.parts], number) - 1
        try:
            return self.parts[part].row(number, found)
        except RowError as error:
            raise RowError(f"dataset {self.parts[part].name}, {error}") from None


AnySource = Source | Several


def of_order(order: Order) -> AnySource:
    """Return what an order's job reads."""
    parts = tuple(Source.of(each) for each in order.datasets)
    return parts[0] if len(parts) == 1 else Several(parts)


class Held(Sequence[Row]):
    """Rows of a dataset by their numbers, read when they are asked for: a fifth of a large file is too much to hold."""

    def __init__(self, source: AnySource, found: Tokens, numbers: Sequence[int]) -> None:
        self._source, self._found, self._numbers = source, found, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """Return one row, or those of a slice. Raises RowError where the file was changed."""
        if isinstance(index, slice):
            return [self._source.row(number, self._found) for number in self._numbers[index]]
        return self._source.row(self._numbers[index], self._found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return id(self)
