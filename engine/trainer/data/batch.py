"""What a model is fed: documents packed into sequences, sequences laid out as tensors.

The rule: which hidden state predicts which token is worked out here, so that a beginning that several documents share
(a system prompt) is computed once and every target still counts as if each document stood alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from engine.trainer.attention import Layout

IGNORED = -100  # label of a token that is context only, as torch's cross_entropy has it
SHARED_AT_LEAST = 16  # tokens; below that, sharing a beginning costs more than it saves


@dataclass(frozen=True)
class Document:
    """One tokenised row: `labels` equals `ids` where a token is trained, IGNORED elsewhere."""

    ids: list[int]
    labels: list[int]
    truncated: bool = False


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `input_ids` and `position_ids` are [rows, T], int64.

    Target j (of `targets` [n], token ids) is predicted by the hidden state number `sources[j]` of the flattened rows.
    With `layout` there is one row and attention stays inside documents; without, rows are padded and the restarts of
    the positions tell documents apart. `tokens` counts the documents' tokens, without padding and each time shared.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    tokens: int
    layout: Layout | None = None

    @property
    def target_count(self) -> int:
        """Number of tokens that are predicted."""
        return len(self.targets)


def _indices(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)  # said, for an empty list would be of floats


def _shared_beginning(documents: Sequence[Document]) -> int:
    """Return how many first tokens all the documents have in common; each keeps one more."""
    first = documents[0]
    size = min(len(document.ids) for document in documents) - 1
    for document in documents:
        for place in range(size):
            if document.ids[place] != first.ids[place]:
                size = place
                break
    return size


def _families(documents: Sequence[Document]) -> list[tuple[int, list[Document]]]:
    """Group documents by their beginning: (tokens shared, documents), in the order of first appearance."""
    groups: dict[tuple[int, ...], list[Document]] = {}
    for document in documents:
        groups.setdefault(tuple(document.ids[:SHARED_AT_LEAST]), []).append(document)
    families = []
    for group in groups.values():
        shared = _shared_beginning(group) if len(group) > 1 else 0
        if shared >= SHARED_AT_LEAST:
            families.append((shared, group))
        else:
            families += [(0, [document]) for document in group]
    return families


def collate_flat(sequences: Sequence[list[Document]]) -> Batch:
    """Lay all documents into one row without padding, beginnings that several share once."""
    ids: list[int] = []
    positions: list[int] = []
    keys: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    query_ends, key_ends = [0], [0]

    def close(key_places: Sequence[int]) -> None:
        keys.extend(key_places)
        query_ends.append(len(ids))
        key_ends.append(len(keys))

    for shared, family in _families([document for sequence in sequences for document in sequence]):
        start = len(ids)
        beginning = range(start, start + shared)
        if shared:
            ids += family[0].ids[:shared]
            positions += range(shared)
            close(beginning)
        for document in family:
            own = len(ids)
            ids += document.ids[shared:]
            positions += range(shared, len(document.ids))
            # A token of the beginning is a target of each document that has it.
            for place in range(1, len(document.ids)):
                if document.labels[place] != IGNORED:
                    targets.append(document.labels[place])
                    sources.append(start + place - 1 if place <= shared else own + place - shared - 1)
            close([*beginning, *range(own, len(ids))])
    query_sizes = [end - begin for begin, end in pairwise(query_ends)]
    key_sizes = [end - begin for begin, end in pairwise(key_ends)]
    layout = Layout(
        torch.tensor(query_ends, dtype=torch.int32),
        torch.tensor(key_ends, dtype=torch.int32),
        None if len(keys) == len(ids) else torch.tensor(keys),
        max(query_sizes),
        max(key_sizes),
    )
    tokens = sum(len(document.ids) for sequence in sequences for document in sequence)
    return Batch(torch.tensor([ids]), torch.tensor([positions]), _indices(sources), _indices(targets), tokens, layout)


def collate_rows(sequences: Sequence[list[Document]], pad: int) -> Batch:
    """Lay each sequence into a row of its own, padded to the longest, for models that mask by position alone."""
    width = max(sum(len(document.ids) for document in sequence) for sequence in sequences)
    ids, positions, sources, targets, tokens = [], [], [], [], 0
    for row, sequence in enumerate(sequences):
        line = [token for document in sequence for token in document.ids]
        labels = [label for document in sequence for label in [IGNORED, *document.labels[1:]]]
        places = [place for document in sequence for place in range(len(document.ids))]
        gap = width - len(line)
        tokens += len(line)
        ids.append(line + [pad] * gap)
        positions.append(places + list(range(gap)))
        for place, label in enumerate(labels):
            if label != IGNORED:
                sources.append(row * width + place - 1)
                targets.append(label)
    return Batch(torch.tensor(ids), torch.tensor(positions), _indices(sources), _indices(targets), tokens)
