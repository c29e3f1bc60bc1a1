"""A model's own text: full sequences, repeatable, the likeliest of what was written, from openers of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.trainer import models, selftext

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


def test_what_is_dropped_is_what_surprised_the_model_most(writer: tuple[Any, Any], monkeypatch: Any) -> None:
    texts = {tuple(text) for text in written(writer)}
    monkeypatch.setattr(selftext, "DROPPED", 0.0)
    everything = [tuple(text) for text in written(writer)]
    surprise = {text: selftext._surprise(writer[0], torch.tensor(text)) for text in everything}
    assert len(everything) == 20
    assert max(surprise[text] for text in texts) <= min(surprise[text] for text in set(everything) - texts)
