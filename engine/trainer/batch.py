"""What a model is fed: documents packed into sequences, sequences laid side by side as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

IGNORED = -100  # label of a token that is context only, as torch's cross_entropy has it


@dataclass(frozen=True)
class Document:
    """One tokenised row: `labels` equals `ids` where a token is trained, IGNORED elsewhere."""

    ids: list[int]
    labels: list[int]
    truncated: bool = False


@dataclass(frozen=True)
class Batch:
    """Packed sequences: ids, positions and labels, each [sequences, tokens]; `tokens` counts all but padding."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    tokens: int

    @property
    def targets(self) -> int:
        """Number of tokens that are predicted."""
        return int((self.labels != IGNORED).sum())


def collate(sequences: Sequence[list[Document]], pad: int) -> Batch:
    """Lay packed sequences side by side. Position ids restart with each document, which is how attention knows."""
    width = max(sum(len(document.ids) for document in sequence) for sequence in sequences)
    ids, positions, labels, tokens = [], [], [], 0
    for sequence in sequences:
        line_ids = [token for document in sequence for token in document.ids]
        line_positions = [position for document in sequence for position in range(len(document.ids))]
        line_labels = [
            label for document in sequence for label in ([IGNORED, *document.labels[1:]] if document.labels else [])
        ]
        tokens += len(line_ids)
        gap = width - len(line_ids)
        ids.append(line_ids + [pad] * gap)
        positions.append(line_positions + list(range(gap)))
        labels.append(line_labels + [IGNORED] * gap)
    return Batch(torch.tensor(ids), torch.tensor(positions), torch.tensor(labels), tokens)
