"""A model's own text: full sequences, repeatable, the likeliest of what was written, from openers of every kind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from engine.trainer import models, selftext
from tests.trainer import families

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def writer(tiny_model: Path) -> tuple[Any, Any]:
    return models.load_model(tiny_model, torch.float32), models.load_tokenizer(tiny_model)


def written(writer: tuple[Any, Any], **changes: Any) -> list[list[int]]:
    return selftext.write(*writer, CPU, **{"count": 20, "length": 24, "seed": 3, "batch_size": 6, **changes})


def test_four_fifths_of_the_sequences_are_kept_each_of_full_length(writer: tuple[Any, Any]) -> None:
    told: list[tuple[int, int]] = []
    texts = written(writer, tell=lambda done, all: told.append((done, all)))
    assert len(texts) == 16
    assert {len(text) for text in texts} == {24}
    assert told[-1] == (20, 20)
    assert len({tuple(text) for text in texts}) > 12


def test_the_same_seed_writes_the_same_and_disturbs_no_other_random_number(writer: tuple[Any, Any]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = written(writer)
    assert torch.equal(torch.rand(3), expected)
    assert written(writer) == first
    assert written(writer, seed=4) != first


def test_openers_are_the_start_of_a_text_of_a_conversation_and_frequent_words(writer: tuple[Any, Any]) -> None:
    _, tokenizer = writer
    kinds = selftext.openers(tokenizer, len(tokenizer))
    assert [tokenizer.decode(kind) for kind in kinds] == ["<|endoftext|>", "<|im_start|>user\n"]
    begins = [tuple(text[: len(kinds[1])]) for text in written(writer)]
    assert begins.count(tuple(kinds[1])) in range(1, 7)
    # A base model without a template has the other kinds.
    tokenizer.chat_template, kept = None, tokenizer.chat_template
    try:
        assert len(selftext.openers(tokenizer, len(tokenizer))) == 1
    finally:
        tokenizer.chat_template = kept


def test_of_a_template_with_a_long_beginning_the_end_is_taken_and_half_of_each_text_is_written(
    writer: tuple[Any, Any],
) -> None:
    _, tokenizer = writer
    tokenizer.chat_template, kept = "system " * 40 + tokenizer.chat_template, tokenizer.chat_template
    try:
        assert len(selftext.openers(tokenizer, len(tokenizer))[1]) > 40
        texts = written(writer, length=16)
    finally:
        tokenizer.chat_template = kept
    assert {len(text) for text in texts} == {16}
    assert len({tuple(text) for text in texts}) > 12


def surprise(model: Any, ids: list[int], begin: int) -> float:
    """Return the mean cross-entropy of the tokens from place `begin` on, by a forward pass without a cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return float(functional.cross_entropy(logits[begin - 1 : -1].float(), torch.tensor(ids[begin:])))


def test_what_is_dropped_is_what_surprised_the_model_most(writer: tuple[Any, Any], monkeypatch: Any) -> None:
    kept = {tuple(text) for text in written(writer, count=10, batch_size=10)}
    kinds = [tuple(kind) for kind in selftext.openers(writer[1], len(writer[1]))]
    monkeypatch.setattr(selftext, "DROPPED", 0.0)
    everything = [tuple(text) for text in written(writer, count=10, batch_size=10)]

    def of(text: tuple[int, ...]) -> float:
        sizes = [len(kind) for kind in kinds if text[: len(kind)] == kind]
        return surprise(writer[0], list(text), max(sizes, default=selftext.OPENING_TOKENS))

    assert len(everything) == 10
    assert max(map(of, kept)) <= min(map(of, set(everything) - kept)) + 1e-5


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3"])
def test_each_token_is_drawn_from_what_the_model_says_of_all_before_it(family: str) -> None:
    # Longer than the window of those that slide.
    model = families.make(family)
    given = torch.randint(3, families.VOCABULARY, (5, 3), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    with torch.no_grad():
        ids, found = selftext._continued(model, given, 4 * families.WINDOW)
    assert torch.equal(ids[:, :3], given)
    assert found.tolist() == pytest.approx([surprise(model, row, 3) for row in ids.tolist()], abs=1e-3)


def loaded(model: Any, monkeypatch: Any) -> Any:
    """Have a model say of each of 400 next tokens: 0, 7 or 280, by 5 to 3 to 2."""
    chances = torch.zeros(model.config.vocab_size)
    chances[[0, 7, 280]] = torch.tensor([0.5, 0.3, 0.2])
    logits = chances.log().expand(400, 1, -1)
    monkeypatch.setattr(model, "forward", lambda input_ids, **_: SimpleNamespace(logits=logits))
    torch.manual_seed(2)
    return model


def test_likely_tokens_are_drawn_often_and_impossible_ones_never(writer: tuple[Any, Any], monkeypatch: Any) -> None:
    model = loaded(writer[0], monkeypatch)
    ids, _ = selftext._continued(model, torch.zeros(400, 1, dtype=torch.long), 11)
    drawn = ids[:, 1:].flatten().bincount(minlength=model.config.vocab_size) / 4000
    assert drawn[[0, 7, 280]].tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert float(drawn.sum()) == pytest.approx(float(drawn[[0, 7, 280]].sum()))


def test_a_temperature_below_one_draws_likely_tokens_more_often(writer: tuple[Any, Any], monkeypatch: Any) -> None:
    model = loaded(writer[0], monkeypatch)
    heat = torch.tensor([1.0, 0.5]).repeat(200)[:, None]
    ids, found = selftext._continued(model, torch.zeros(400, 1, dtype=torch.long), 21, heat)
    drawn = ids[:, 1:].unflatten(0, (200, 2)).transpose(0, 1).flatten(1)
    share = [[float((rows == token).float().mean()) for token in (0, 7, 280)] for rows in drawn]
    squares = [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38]  # of 0.5, 0.3 and 0.2, over their sum
    assert share[0] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert share[1] == pytest.approx(squares, abs=0.03)
    assert float(found[1::2].mean()) < float(found[::2].mean())


def test_of_each_temperature_the_same_share_is_dropped(writer: tuple[Any, Any], monkeypatch: Any) -> None:
    asked: dict[str, Any] = {"count": 20, "temperatures": (1.0, 0.2)}
    kept = {tuple(text) for text in written(writer, **asked)}
    monkeypatch.setattr(selftext, "DROPPED", 0.0)
    everything = [tuple(text) for text in written(writer, **asked)]
    assert [sum(text in kept for text in everything[first::2]) for first in (0, 1)] == [8, 8]


def test_fewer_are_written_at_once_where_what_is_kept_of_them_is_large(writer: tuple[Any, Any]) -> None:
    model = writer[0]
    assert selftext.batch_rows(model, 256) == selftext.BATCH
    each = 2 * 2 * 2 * 8 * 1_000_000 * 4  # keys and values, layers, heads, width, tokens, bytes
    assert selftext.batch_rows(model, 1_000_000) == selftext.ROOM_BYTES // each
    assert selftext.batch_rows(model, 10**9) == 1


def test_what_a_listener_raises_ends_the_writing_and_the_model_learns_on(writer: tuple[Any, Any]) -> None:
    def refuse(done: int, all: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(writer, tell=refuse)
