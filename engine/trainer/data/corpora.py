"""From rows to packed token sequences, with a mask of what is trained.

The rule: the order of training is a pure function of (seed, epoch, step); nothing is consumed, so resuming
needs the step and nothing else. No row is lost in silence: a row that cannot be trained on stops the job, or is
counted where the job asked to leave such rows out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.packing import pack
from engine.data.rows import Row, RowError
from engine.jobs.hyperparams import LoopHyperparams
from engine.trainer.data import documents
from engine.trainer.data.batch import Document
from engine.trainer.data.documents import Documents, Packs
from engine.trainer.data.render import Manner
from engine.trainer.data.sources import AnySource, Held, Source

__all__ = ["CHATML", "Corpus", "Source", "assemble", "described", "load", "pack", "pad_id", "refusal", "split"]

REASONS_SHOWN, LINES_SHOWN = 5, 5

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Tell = Callable[[str], object]
Rows = NDArray[np.int64]


def split(chosen: Rows, settings: LoopHyperparams, firsts: Sequence[int] = (0,)) -> tuple[Rows, Rows]:
    """Return (training rows, validation rows): a seeded sample of all is held out, or the last rows of each dataset as
    they stand. `firsts`: the first row of each dataset, of which the good ones are `chosen`.

    Raises RowError where there are fewer than two rows.
    """
    count = len(chosen)
    if count < 2:
        raise RowError("the dataset has one row; two are needed, one to train on and one to evaluate on")
    held = np.zeros(count, np.bool_)
    if settings.val_split == "last":
        # Of each: the last of them all may be one dataset, of which nothing would be learned.
        ends = [*np.searchsorted(chosen, firsts[1:]).tolist(), count]
        sizes = np.diff(ends, prepend=0).tolist()
        for end, last in zip(ends, settings.held_out_of_each(sizes), strict=True):
            held[end - last : end] = True
    else:
        drawn = random.Random(settings.seed)  # noqa: S311  (a split, not a secret)
        held[drawn.sample(range(count), settings.held_out(count))] = True
    return chosen[~held], chosen[held]


@dataclass(frozen=True)
class Corpus:
    """Everything to train and evaluate on, packed. `notices` say in words what came of the rows."""

    training: Packs
    validation: Packs
    training_rows: int
    validation_rows: Sequence[Row]
    truncated_rows: int
    training_tokens: int
    pad: int
    dropped_rows: int = 0
    notices: tuple[str, ...] = ()

    def sequences(self, first: int, count: int, seed: int) -> list[list[Document]]:
        """Return training sequences number `first` … `first + count - 1` of the endless, shuffled order."""
        return [self.training[index] for index in self.order(first, count, seed)]

    def order(self, first: int, count: int, seed: int) -> list[int]:
        """Return which sequences stand at places `first` … `first + count - 1` of the endless, shuffled order."""
        size = len(self.training)
        wanted = range(first, first + count)
        return [_epoch(size, index // size, seed)[index % size] for index in wanted]


@lru_cache(maxsize=2)  # a step looks into one epoch, or over the border of two
def _epoch(size: int, epoch: int, seed: int) -> list[int]:
    """Return the order in which an epoch goes through `size` sequences."""
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311  (an order, not a secret)
    return order


def pad_id(tokenizer: Any) -> int:
    """Return the token that fills a row of a batch; it is never looked at."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)


def described(fitted: Documents) -> str:
    """Return in words what is wrong with which lines."""
    parts, found, reasons = [], fitted.tokens, fitted.reasons()
    for reason, bad in reasons[:REASONS_SHOWN]:
        several = f"line{'s' * (len(bad) > 1)} " if not found.parts else ""
        named = ", ".join(found.place(row) if found.parts else str(found.lines[row]) for row in bad[:LINES_SHOWN])
        more = f" and {len(bad) - LINES_SHOWN:,} more" if len(bad) > LINES_SHOWN else ""
        parts.append(f"{several}{named}{more}: {reason}")
    rest = sum(len(bad) for _, bad in reasons[REASONS_SHOWN:])
    return "; ".join(parts) + (f"; and {rest:,} more" if rest else "")


def refusal(fitted: Documents) -> RowError | None:
    """Return why these rows stop a job that does not leave bad ones out; None where all are good."""
    if not fitted.bad:
        return None
    total = len(fitted.tokens.ends)
    if len(fitted.bad) == total:
        which = f"the {total:,} rows of these datasets" if fitted.tokens.parts else f"its {total:,} rows"
        return RowError(f"none of {which} can be trained on: {described(fitted)}")
    first, others = min(fitted.bad), len(fitted.bad) - 1
    more = f" {others:,} more row{'s' * (others > 1)} cannot be used either." if others else ""
    words = f"{fitted.bad[first]}.{more} Mend the data, or set drop_bad_rows to leave such rows out and count them"
    whose, line = fitted.tokens.whose(first), int(fitted.tokens.lines[first])
    return RowError(f"dataset {whose}, line {line}: {words}") if whose else RowError(words, line)


def truncation(fitted: Documents, seq_len: int) -> str:
    """Return in words what truncation took away, with the seq_len that would not; empty where it took nothing."""
    count = len(fitted.truncated)
    if not count:
        return ""
    usable = np.setdiff1d(np.flatnonzero(~fitted.tokens.goes_on), list(fitted.bad))
    sizes = np.sort(fitted.tokens.sizes[usable])
    most = int(sizes[math.ceil(0.99 * len(sizes)) - 1])
    lost = int((fitted.tokens.sizes[fitted.truncated] - seq_len).sum())
    keeps = f"seq_len {int(sizes[-1])} would keep every row whole"
    most_of_them = f", seq_len {most} all but one in a hundred" if seq_len < most < sizes[-1] else ""
    return (
        f"{count:,} row{'s' * (count > 1)} ({count / len(sizes):.1%}) longer than seq_len {seq_len} lost {lost:,} "
        f"tokens at the end; {keeps}{most_of_them}."
    )


def _notices(fitted: Documents, corpus: Corpus, settings: LoopHyperparams) -> tuple[str, ...]:
    count = len(corpus.training)
    fill = corpus.training_tokens / (count * settings.seq_len)
    kind = "packed sequences" if settings.packing else "sequences"
    kept = (
        f"{corpus.training_rows:,} rows to train on ({corpus.training_tokens:,} tokens in {count:,} {kind}, "
        f"{fill:.0%} full), {len(corpus.validation_rows):,} held out, {corpus.truncated_rows:,} truncated."
    )
    many = "rows are" if corpus.dropped_rows > 1 else "row is"
    dropped = f"{corpus.dropped_rows:,} {many} left out: {described(fitted)}." if fitted.bad else ""
    cut = fitted.tokens.thoughts_cut
    thoughts = f"The chat template leaves out the reasoning of answers in {cut:,} row{'s' * (cut > 1)}." if cut else ""
    return tuple(notice for notice in (kept, truncation(fitted, settings.seq_len), dropped, thoughts) if notice)


def assemble(source: AnySource, fitted: Documents, settings: LoopHyperparams, pad: int) -> Corpus:
    """Split and pack a dataset's good rows for one job. Raises RowError where they are fewer than two."""
    found = fitted.tokens
    good = np.setdiff1d(np.arange(len(found.ends)), list(fitted.bad))
    training_rows, held_rows = split(good, settings, [first for _, first in found.parts] or [0])

    def packed(chosen: Rows) -> tuple[Packs, int]:
        numbers = fitted.of_rows(chosen)
        sizes: list[int] = fitted.sizes[numbers].tolist()
        places = pack(sizes, settings.seq_len) if settings.packing else [[place] for place in range(len(sizes))]
        return Packs(fitted, [numbers[each].tolist() for each in places]), sum(sizes)

    training, size = packed(training_rows)
    corpus = Corpus(
        training=training,
        validation=packed(held_rows)[0],
        training_rows=len(training_rows),
        validation_rows=Held(source, found, held_rows.tolist()),
        truncated_rows=len(fitted.truncated),
        training_tokens=size,
        pad=pad,
        dropped_rows=len(fitted.bad),
    )
    return replace(corpus, notices=_notices(fitted, corpus, settings))


def _silent(_: str) -> None:
    """Tell nobody."""


def load(
    source: AnySource, tokenizer: Any, settings: LoopHyperparams, *, tell: Tell = _silent, log: Tell = _silent
) -> Corpus:
    """Read, tokenise, cut, split and pack a dataset. `tell` hears how far it is, `log` what is worth keeping.

    Raises RowError, naming the line, at a row that cannot be used, unless the settings leave such rows out; ValueError
    for a tokenizer that cannot be used.
    """
    source = source.read(Manner.of(settings))
    found = source.tokens(tokenizer, tell, log)
    fitted = documents.fit(found, seq_len=settings.seq_len, everything=settings.loss_on == "all")
    refused = refusal(fitted)
    if refused and (not settings.drop_bad_rows or len(fitted.bad) == len(found.ends)):
        raise refused
    return assemble(source, fitted, settings, pad_id(tokenizer))
