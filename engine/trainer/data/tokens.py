"""A dataset's rows as token ids, with a mask of what the assistant says.

The rule: nothing here depends on a job's settings but the tokenizer, the rows and the manner in which they are read, so
that the result is kept and used again (`token_cache`); what does not fit, or is not to be trained, is decided later
(`documents`). A row that fails is there with its reason and without tokens.
"""

from __future__ import annotations

import os
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data import rows
from engine.data.rows import Row, RowError
from engine.trainer.data.render import PLAIN, Manner, Rendered, Renderer, Span

# Rows handed to the tokenizer at once: enough to keep every core busy, little enough to tell progress.
BATCH_ROWS, BATCH_CHARACTERS = 512, 2_000_000
TELL_EVERY_S = 1.0


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be trained on; with `whole`, only its answers cannot be told from the rest."""

    message: str
    whole: bool = False


@dataclass(frozen=True)
class Tokens:
    """All rows of a dataset in the file's order. Row r has the tokens `ends[r - 1]` up to `ends[r]`.

    `ids` int32 [tokens]; `answers` bool [tokens], what is trained when answers are; per row: `ends` int64, `lines`
    int64 (its line in the file), `places` int64 (where that line begins, in bytes), `goes_on` bool (plain text, which
    may go on in another sequence), `reasons` int32 (0, or the number, from 1, of its entry in `faults`).
    """

    ids: NDArray[np.int32]
    answers: NDArray[np.bool_]
    ends: NDArray[np.int64]
    lines: NDArray[np.int64]
    places: NDArray[np.int64]
    goes_on: NDArray[np.bool_]
    reasons: NDArray[np.int32]
    faults: tuple[Fault, ...] = ()
    thoughts_cut: int = 0  # rows of which the template left out some reasoning
    parts: tuple[tuple[str, int], ...] = ()  # of several datasets: the name of each, and its first row

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of tokens of each row."""
        return np.diff(self.ends, prepend=0)

    def fault(self, row: int) -> Fault | None:
        """Return what is wrong with a row, if anything."""
        reason = int(self.reasons[row])
        return self.faults[reason - 1] if reason else None

    def whose(self, row: int) -> str:
        """Return the name of the dataset that a row is of; empty where there is but one."""
        return self.parts[bisect_right([first for _, first in self.parts], row) - 1][0] if self.parts else ""

    def place(self, row: int) -> str:
        """Return how a person finds a row: line 7, or of several datasets rows line 7."""
        return f"{self.whose(row)} line {self.lines[row]}".lstrip()


def joined(named: Sequence[tuple[str, Tokens]]) -> Tokens:
    """Return the rows of several datasets, each with its name, as those of one, in their order."""
    each = [tokens for _, tokens in named]
    rows = np.cumsum([0, *(len(tokens.ends) for tokens in each)]).tolist()
    begun = np.cumsum([0, *(len(tokens.ids) for tokens in each)]).tolist()
    known = np.cumsum([0, *(len(tokens.faults) for tokens in each)]).tolist()
    reasons = [np.where(one.reasons > 0, one.reasons + first, 0) for one, first in zip(each, known, strict=False)]
    return Tokens(
        ids=np.concatenate([tokens.ids for tokens in each]),
        answers=np.concatenate([tokens.answers for tokens in each]),
        ends=np.concatenate([tokens.ends + first for tokens, first in zip(each, begun, strict=False)]),
        lines=np.concatenate([tokens.lines for tokens in each]),
        places=np.concatenate([tokens.places for tokens in each]),
        goes_on=np.concatenate([tokens.goes_on for tokens in each]),
        reasons=np.concatenate(reasons).astype(np.int32),
        faults=tuple(fault for tokens in each for fault in tokens.faults),
        thoughts_cut=sum(tokens.thoughts_cut for tokens in each),
        parts=tuple((name, first) for (name, _), first in zip(named, rows, strict=False)),
    )


class _Builder:
    """Collects rows as they are tokenised."""

    def __init__(self) -> None:
        self.ids: list[NDArray[np.int32]] = []
        self.answers: list[NDArray[np.bool_]] = []
        self.ends, self.lines, self.places = array("q"), array("q"), array("q")
        self.goes_on, self.reasons = array("b"), array("i")
        self.faults: dict[Fault, int] = {}
        self.thoughts_cut = 0

    def add(
        self,
        line: int,
        place: int,
        ids: Sequence[int] = (),
        answers: NDArray[np.bool_] | None = None,
        *,
        goes_on: bool = False,
        fault: Fault | None = None,
    ) -> None:
        """Add a row, with its tokens or with its fault, or with both."""
        if answers is not None:
            self.ids.append(np.array(ids, dtype=np.int32))
            self.answers.append(answers)
        self.ends.append((self.ends[-1] if self.ends else 0) + len(ids))
        self.lines.append(line)
        self.places.append(place)
        self.goes_on.append(goes_on)
        self.reasons.append(self.faults.setdefault(fault, len(self.faults) + 1) if fault else 0)

    def tokens(self) -> Tokens:
        """Return what was collected."""
        return Tokens(
            ids=np.concatenate([np.empty(0, np.int32), *self.ids]),
            answers=np.concatenate([np.empty(0, np.bool_), *self.answers]),
            ends=np.array(self.ends, dtype=np.int64),
            lines=np.array(self.lines, dtype=np.int64),
            places=np.array(self.places, dtype=np.int64),
            goes_on=np.array(self.goes_on, dtype=np.bool_),
            reasons=np.array(self.reasons, dtype=np.int32),
            faults=tuple(self.faults),
            thoughts_cut=self.thoughts_cut,
        )


def trained(encoding: Any, spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Return which tokens of an encoded text hold a character of a span. Asks for the ends of spans alone."""
    mask = np.zeros(len(encoding), dtype=np.bool_)
    for begin, stop in spans:
        # White space may belong to no token.
        first = next((t for c in range(begin, stop) if (t := encoding.char_to_token(c)) is not None), None)
        last = next((t for c in range(stop - 1, begin - 1, -1) if (t := encoding.char_to_token(c)) is not None), None)
        if first is None or last is None:
            continue
        # A character may take several tokens, of which the first was named.
        while last + 1 < len(mask) and _within(encoding.token_to_chars(last + 1), stop):
            last += 1
        mask[first : last + 1] = True
    return mask


def _within(chars: Span | None, stop: int) -> bool:
    return chars is not None and chars[0] < min(chars[1], stop)


@dataclass(frozen=True)
class _Waiting:
    """A rendered row on its way to the tokenizer."""

    line: int
    place: int
    goes_on: bool
    rendered: Rendered | None
    fault: Fault | None


def _encode(backend: Any, batch: Sequence[_Waiting]) -> dict[int, Any]:
    """Return the encoding of each row of a batch that has a text, by its place."""
    encoded: dict[int, Any] = {}
    for special in (False, True):
        chosen = [i for i, one in enumerate(batch) if one.rendered and one.rendered.special is special]
        texts = [batch[i].rendered.text for i in chosen]  # type: ignore[union-attr]
        encoded.update(zip(chosen, backend.encode_batch(texts, add_special_tokens=special), strict=True))
    return encoded


def _add(batch: Sequence[_Waiting], encoded: dict[int, Any], eos: int | None, into: _Builder) -> None:
    for i, one in enumerate(batch):
        if one.rendered is None:
            into.add(one.line, one.place, fault=one.fault)
            continue
        ids, mask = encoded[i].ids, trained(encoded[i], one.rendered.spans)
        if one.rendered.special and eos is not None:
            # The end is learnt too; some tokenizers put it there themselves.
            mask = np.append(mask[:-1], True) if ids and ids[-1] == eos else np.append(mask, True)
            ids = ids if len(mask) == len(ids) else [*ids, eos]
        into.add(one.line, one.place, ids, mask, goes_on=one.goes_on, fault=one.fault)
        into.thoughts_cut += one.rendered.thought_cut


def _rendered(lines: Iterator[tuple[int, int, bytes]], renderer: Renderer, form: str | None) -> Iterator[_Waiting]:
    for number, place, line in lines:
        row: Row | None = None
        try:
            row = rows.parse(line, number, form)
            if row:
                made = renderer.render(row)
                fault = Fault(made.fault, whole=True) if made.fault else None
                yield _Waiting(number, place, row.shape == rows.TEXT, made, fault)
        except RowError as error:
            yield _Waiting(number, place, False, None, Fault(error.message))


def _batches(rows: Iterator[_Waiting]) -> Iterator[list[_Waiting]]:
    batch: list[_Waiting] = []
    characters = 0
    for one in rows:
        batch.append(one)
        characters += len(one.rendered.text) if one.rendered else 0
        if len(batch) == BATCH_ROWS or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (number, first byte, content) of each line."""
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, place, line
            place += len(line)


def tokenise(
    path: Path,
    tokenizer: Any,
    *,
    form: str | None = None,
    manner: Manner = PLAIN,
    tell: Callable[[str], object] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Tokens:
    """Turn a JSONL file into tokens. `form` is the shape that all rows have; None: each row's own is detected.

    `tell` hears about once a second how far it is. Raises ValueError for a tokenizer that cannot say where its tokens
    stand in a text.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"the model's tokenizer ({type(tokenizer).__name__}) cannot say where its tokens stand in a text. "
            "Save it as tokenizer.json beside the model."
        )
    # All cores: this process forks no more, which is what the variable is turned off for elsewhere.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    built, total, begun = _Builder(), max(path.stat().st_size, 1), clock()
    told = begun
    backend, eos = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    waiting: tuple[list[_Waiting], Future[dict[int, Any]]] | None = None
    # While one batch is with the tokenizer, which needs no interpreter, the next is rendered, which does.
    with ThreadPoolExecutor(max_workers=1) as encoder:
        for batch in _batches(_rendered(_lines(path), Renderer(tokenizer, manner), form)):
            ahead = encoder.submit(_encode, backend, batch)
            if waiting:
                _add(waiting[0], waiting[1].result(), eos, built)
            waiting, now = (batch, ahead), clock()
            if now - told >= TELL_EVERY_S and built.ends:
                told, count, share = now, len(built.ends), built.places[-1] / total
                tell(f"tokenising rows: {count:,} ({share:.0%}, {count / (now - begun):,.0f} rows/s)")
        if waiting:
            _add(waiting[0], waiting[1].result(), eos, built)
    return built.tokens()
