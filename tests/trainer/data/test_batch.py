"""How documents are laid out: every trained token is predicted once, from what stands before it in its own document."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.trainer.data.batch import IGNORED, SHARED_AT_LEAST, Batch, Document, collate_flat, collate_rows
from tests.trainer import families
from tests.trainer.families import APART, SHARING

PAD = 0
Prediction = tuple[tuple[int, ...], int]

# Few beginnings and few tokens, so that documents share some, all or nothing, also in what is trained.
beginnings = st.sampled_from([[], [], families.BEGINNING, families.BEGINNING[:SHARED_AT_LEAST], [5] * 24])


@st.composite
def documents(draw: st.DrawFn) -> Document:
    ids = draw(beginnings) + draw(st.lists(st.integers(3, 5), min_size=1, max_size=30))
    context = draw(st.integers(0, len(ids)))
    trained = draw(st.lists(st.booleans(), min_size=len(ids) - context, max_size=len(ids) - context))
    learns = [False] * context + trained
    return Document(ids, [token if learn else IGNORED for token, learn in zip(ids, learns, strict=True)])


packs = st.lists(st.lists(documents(), min_size=1, max_size=5), min_size=1, max_size=4)


def wanted(sequences: list[list[Document]]) -> Counter[Prediction]:
    """Return what has to be predicted: (tokens before, token), as often as it occurs."""
    return Counter(
        (tuple(one.ids[:place]), one.labels[place])
        for sequence in sequences
        for one in sequence
        for place in range(1, len(one.ids))
        if one.labels[place] != IGNORED
    )


def segments(batch: Batch) -> list[list[int]]:
    """Return the places in a flat row that each segment of the layout sees, its own last."""
    assert batch.layout is not None
    length = batch.input_ids.shape[1]
    keys = range(length) if batch.layout.keys is None else batch.layout.keys.tolist()
    return [list(keys[start:end]) for start, end in pairwise(batch.layout.key_ends.tolist())]


@settings(deadline=None)
@given(packs)
def test_in_a_flat_row_every_trained_token_but_a_first_is_predicted_once_from_its_own_document(
    sequences: list[list[Document]],
) -> None:
    batch = collate_flat(sequences)
    row, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    before: dict[int, tuple[int, ...]] = {}
    assert batch.layout is not None
    queries = list(pairwise(batch.layout.query_ends.tolist()))
    for seen, (start, end) in zip(segments(batch), queries, strict=True):
        # A segment's queries are the last of its keys, in order, and count on from the beginning it shares.
        assert seen[len(seen) - (end - start) :] == list(range(start, end))
        assert [positions[place] for place in seen] == list(range(len(seen)))
        for place in range(start, end):
            before[place] = tuple(row[each] for each in seen[: positions[place] + 1])
    assert queries[-1][1] == len(row)
    found = Counter(
        (before[source], target) for source, target in zip(batch.sources.tolist(), batch.targets.tolist(), strict=True)
    )
    assert found == wanted(sequences)
    assert batch.target_count == sum(found.values())


@settings(deadline=None)
@given(packs)
def test_a_flat_row_holds_every_document_and_counts_each_of_its_tokens(sequences: list[list[Document]]) -> None:
    batch = collate_flat(sequences)
    row = batch.input_ids[0].tolist()
    every = [one for sequence in sequences for one in sequence]
    laid = Counter(tuple(row[place] for place in seen) for seen in segments(batch))
    shared = laid - Counter(tuple(one.ids) for one in every)
    assert not Counter(tuple(one.ids) for one in every) - laid
    assert batch.tokens == sum(len(one.ids) for one in every)
    # What is there besides documents is beginnings: long enough to pay, of two documents at least.
    for beginning in shared.elements():
        sharers = [
            one for one in every if tuple(one.ids[: len(beginning)]) == beginning and len(one.ids) > len(beginning)
        ]
        assert len(beginning) >= SHARED_AT_LEAST
        assert len(sharers) >= 2
    assert batch.layout is not None
    assert (batch.layout.keys is None) == (not shared)
    assert len(row) <= batch.tokens
    assert batch.layout.longest_query == int(batch.layout.query_ends.diff().max())
    assert batch.layout.longest_key == int(batch.layout.key_ends.diff().max()) == max(len(one.ids) for one in every)


@settings(deadline=None)
@given(packs)
def test_in_padded_rows_every_trained_token_is_predicted_once_and_padding_never(
    sequences: list[list[Document]],
) -> None:
    batch = collate_rows(sequences, PAD)
    width = batch.input_ids.shape[1]
    row, positions = batch.input_ids.flatten().tolist(), batch.position_ids.flatten().tolist()
    found: Counter[Prediction] = Counter()
    for source, target in zip(batch.sources.tolist(), batch.targets.tolist(), strict=True):
        found[tuple(row[source - positions[source] : source + 1]), target] += 1
    assert found == wanted(sequences)
    for number, sequence in enumerate(sequences):
        line = [token for one in sequence for token in one.ids]
        begin, filled = number * width, number * width + len(line)
        assert row[begin:filled] == line
        assert positions[begin:filled] == [place for one in sequence for place in range(len(one.ids))]
        assert set(row[filled : begin + width]) <= {PAD}
    assert batch.tokens == sum(len(one.ids) for sequence in sequences for one in sequence)
    assert width == max(sum(len(one.ids) for one in sequence) for sequence in sequences)


def test_a_beginning_that_three_documents_share_is_computed_once() -> None:
    apart, sharing = collate_flat([APART]), collate_flat([SHARING])
    assert apart.input_ids.shape[1] == apart.tokens
    assert sharing.input_ids.shape[1] == sharing.tokens - 2 * len(families.BEGINNING)


def test_a_batch_without_a_trained_token_is_one_of_whole_numbers_too() -> None:
    untrained = [Document([3, 4, 5], [IGNORED] * 3)]
    for batch in (collate_flat([untrained]), collate_rows([untrained], PAD)):
        assert batch.target_count == 0
        assert batch.sources.dtype == batch.targets.dtype == torch.int64
