"""How many optimiser steps a job is going to take, before its rows were read.

The rule: where epochs are asked for this is an estimate, by which nobody decides anything; the worker counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data import rows
from engine.data.lengths import TOKENS_PER_MESSAGE
from engine.data.packing import pack

if TYPE_CHECKING:
    from engine.jobs.hyperparams import FinetuneHyperparams, Hyperparams
    from store.catalog import Dataset

# As `advice` counts text of which nothing more is known.
CHARACTERS_PER_TOKEN = 4


def steps(settings: Hyperparams, datasets: Sequence[Dataset], model: Path | None) -> int:
    """Return the steps of a job on these datasets; `model` is the folder whose tokenizer counts their tokens."""
    from engine.jobs.hyperparams import FinetuneHyperparams

    if not isinstance(settings, FinetuneHyperparams) or settings.epochs is None:
        return settings.total_steps
    sizes = [max(each.rows, 1) for each in datasets]
    sequences = [_sequences(settings, each, model) for each in datasets]
    if settings.val_split == "last":
        held = settings.held_out_of_each(sizes)
        left = sum(one * (1 - out / rows) for one, out, rows in zip(sequences, held, sizes, strict=True))
    else:
        left = sum(sequences) * (1 - settings.held_out(sum(sizes)) / sum(sizes))
    return settings.steps_over(max(round(left), 1))


def _sequences(settings: FinetuneHyperparams, dataset: Dataset, model: Path | None) -> float:
    """Return how many sequences all rows of a dataset come to, by a sample of them."""
    from engine.plans import advice

    count = max(dataset.rows, 1)
    data = advice.data_size(dataset, model)
    sample = data.lengths.sample if data.lengths else (max(round(data.tokens / count), 1),)
    told = TOKENS_PER_MESSAGE + len(settings.system_prompt) // CHARACTERS_PER_TOKEN if settings.system_prompt else 0
    documents = [size for length in sample for size in _cut(length + told, settings.seq_len, dataset.format)]
    made = len(pack(documents, settings.seq_len)) if settings.packing else len(documents)
    if len(sample) == 1 and settings.packing:
        return count * sum(documents) / settings.seq_len  # one row of the mean length says nothing of how they fit
    return made * count / len(sample)


def _cut(length: int, seq_len: int, form: str) -> list[int]:
    """Return the sizes of the documents of a row of so many tokens: plain text goes on, any other loses its end."""
    if form != rows.TEXT:
        return [min(length, seq_len)]
    return [min(seq_len, length - start) for start in range(0, length, seq_len)]
