"""Attention inside documents: each token sees its own document and nothing else, however rows are laid out."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch

from engine.trainer import attention
from engine.trainer.data.batch import Batch, Document, collate_flat
from tests.trainer import families
from tests.trainer.families import APART, SHARING, WINDOW

FLAT = ["llama", "llama-plain-heads", "qwen3", "mistral", "gemma3", "gpt2"]


@torch.no_grad()
def hidden(model: Any, batch: Batch) -> torch.Tensor:
    """Return the hidden states [T, h] of a flat row."""
    given = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    return model.get_decoder()(**given, documents=batch.layout).last_hidden_state[0]


def places(batch: Batch) -> list[torch.Tensor]:
    """Return where in the flat row the tokens of each document lie, shared ones included."""
    assert batch.layout is not None
    keys = batch.layout.keys if batch.layout.keys is not None else torch.arange(batch.input_ids.shape[1])
    return [keys[start:end] for start, end in pairwise(batch.layout.key_ends.tolist())]


def pair(family: str, **changes: Any) -> tuple[Any, Any]:
    """Return a model as transformers runs it, and its copy that attends inside documents."""
    stock = families.make(family, **changes)
    ours = copy.deepcopy(stock)
    ours.set_attn_implementation(attention.NAME)
    return stock, ours


@pytest.mark.parametrize("documents", [APART, SHARING], ids=["apart", "sharing"])
@pytest.mark.parametrize("family", FLAT)
def test_hidden_states_in_a_flat_row_are_those_of_each_document_alone(family: str, documents: list[Document]) -> None:
    stock, ours = pair(family)
    batch = collate_flat([documents[:3], documents[3:]])
    found = hidden(ours, batch)
    laid = {tuple(batch.input_ids[0, where].tolist()): found[where] for where in places(batch)}
    for one in documents:
        with torch.no_grad():
            alone = stock.get_decoder()(input_ids=torch.tensor([one.ids])).last_hidden_state[0]
        torch.testing.assert_close(laid[tuple(one.ids)], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FLAT)
def test_what_one_document_says_changes_no_bit_of_another(family: str) -> None:
    _, ours = pair(family)
    changed = families.document(len(APART[0].ids), seed=77)
    before, after = collate_flat([APART]), collate_flat([[changed, *APART[1:]]])
    one, other = hidden(ours, before), hidden(ours, after)
    size = len(changed.ids)
    assert not torch.equal(one[:size], other[:size])
    assert torch.equal(one[size:], other[size:])


@pytest.mark.parametrize("family", FLAT)
def test_no_token_sees_what_comes_after_it(family: str) -> None:
    _, ours = pair(family)
    first, second = APART[0], families.document(9, seed=78, beginning=APART[0].ids[:16])
    same = first.ids[:16]
    assert second.ids[:16] == same
    one, other = hidden(ours, collate_flat([[first]])), hidden(ours, collate_flat([[second]]))
    torch.testing.assert_close(one[:16], other[:16], rtol=1e-5, atol=1e-5)
    assert (one[16:20] - other[16:20]).abs().max() > 1e-2


@pytest.mark.parametrize("documents", [APART, SHARING], ids=["apart", "sharing"])
def test_a_sliding_window_is_kept_inside_documents(documents: list[Document]) -> None:
    _, windowed = pair("mistral")
    _, wide = pair("mistral", sliding_window=None)
    batch = collate_flat([documents])
    near, far = hidden(windowed, batch), hidden(wide, batch)
    for where in places(batch):
        one, other = near[where], far[where]
        # Up to the window's size there is no difference; behind it there is.
        torch.testing.assert_close(one[:WINDOW], other[:WINDOW], rtol=1e-5, atol=1e-5)
        if len(where) > WINDOW:
            assert (one[WINDOW:] - other[WINDOW:]).abs().max() > 1e-2


@pytest.mark.parametrize("family", [*FLAT, "qwen2"])
def test_generation_is_what_stock_transformers_writes(family: str) -> None:
    stock, ours = pair(family)
    # Longer than the window, so that a model that has one must keep to it.
    prompt = torch.tensor([APART[0].ids])
    options = {"max_new_tokens": 12, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    wanted, found = (
        model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options) for model in (stock, ours)
    )
    torch.testing.assert_close(torch.cat(found.scores), torch.cat(wanted.scores), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.sequences, wanted.sequences)


def test_models_whose_attention_asks_for_more_are_not_taken_for_supported() -> None:
    wanted = {"llama": True, "mistral": True, "gpt2": True, "gemma2": False, "gptj": False, "gpt-oss": False}
    assert {family: attention.supports(families.make(family)) for family in wanted} == wanted
