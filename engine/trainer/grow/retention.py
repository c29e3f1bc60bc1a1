"""Staying what it was: the divergence from the original model on text that the original wrote itself.

The rule: the original is the growing network with its new parts bypassed, so it costs no second copy; what it says of
a text is worked out once and kept.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from engine.trainer import divergence
from engine.trainer.data.batch import Batch, Document
from engine.trainer.grow.operators import Grown
from engine.trainer.objective import Objective


def documents(sequences: Sequence[Sequence[int]]) -> list[list[Document]]:
    """Return token sequences as packed sequences of one document each, every token of which counts."""
    return [[Document(list(ids), list(ids))] for ids in sequences]


class Retention:
    """`weight` times the mean divergence per token from the original, on one sequence a step."""

    def __init__(
        self, grown: Grown, objective: Objective, sequences: Sequence[Sequence[int]], *, weight: float, seed: int
    ) -> None:
        self._grown = grown
        self._objective = replace(objective, noise=0.0)
        self._sequences = documents(sequences)
        random.Random(seed).shuffle(self._sequences)  # noqa: S311  (an order, not a secret)
        self._weight = weight
        self._said: dict[int, torch.Tensor] = {}  # the original's hidden states of a sequence, in main memory

    def __call__(self, step: int) -> torch.Tensor:
        """Return the penalty of step number `step`: the same sequence for the same number, in every attempt."""
        number = (step - 1) % len(self._sequences)
        objective = self._objective
        batch = objective.collate([self._sequences[number]])
        said = self._original(number, batch)
        rows = objective.read(batch)
        if objective.direct:
            summed = divergence.of_hidden(rows, objective.head(), said, objective.head())
        else:
            summed = divergence.of_logits(rows, said)
        return self._weight * summed / max(batch.target_count, 1)

    @torch.no_grad()
    def _original(self, number: int, batch: Batch) -> torch.Tensor:
        if number in self._said:
            return self._said[number].to(self._objective.device)
        with self._grown.original():
            rows = self._objective.read(batch)
        if self._objective.direct:  # logits are too many to keep
            self._said[number] = rows.cpu()
        return rows
