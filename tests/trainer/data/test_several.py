"""Several datasets are read as one: rows of all of them, split at the end, each row named with its own dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.data.rows import RowError
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.trainer.data import corpora, tokens
from engine.trainer.data.corpora import Corpus
from engine.trainer.data.sources import AnySource, Several, Source
from tests.trainer.conftest import write_rows

BAD = {"prompt": "a", "chosen": "b", "rejected": "c"}


def chat(n: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"chat {n}"}]}


def text(n: int) -> dict[str, Any]:
    return {"text": f"text {n}"}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Write a dataset."""

    def made(name: str, *fields: dict[str, Any], form: str = "mixed") -> Source:
        path = write_rows(tmp_path / f"{name}.jsonl", *fields)
        return Source(path, name.ljust(64, "0"), form, tmp_path / f"cache-{name}", name)

    return made


def load(source: AnySource, tokenizer: Any, told: list[str] | None = None, **hyperparams: Any) -> Corpus:
    settings = FinetuneHyperparams.model_validate({"seq_len": 64, **hyperparams})
    return corpora.load(source, tokenizer, settings, log=(told if told is not None else []).append)


def learned(tokenizer: Any, corpus: Corpus) -> list[str]:
    found = [document for each in corpus.training for document in each]
    return [tokenizer.decode([one for one in each.labels if one != -100], skip_special_tokens=True) for each in found]


def test_rows_of_every_dataset_are_trained_whatever_their_shapes(make: Any, tokenizer: Any) -> None:
    parts = (make("chats", *map(chat, range(6)), form="messages"), make("texts", *map(text, range(9)), form="text"))
    corpus = load(Several(parts), tokenizer, val_split="last", val_fraction=0.2)
    wanted = [*(f"chat {n}" for n in range(5)), *(f"text {n}" for n in range(7))]
    assert sorted(learned(tokenizer, corpus)) == sorted(wanted)
    assert [row.fields for row in corpus.validation_rows] == [chat(5), text(7), text(8)]


def test_the_last_share_of_each_dataset_is_held_out_and_none_as_a_whole(make: Any, tokenizer: Any) -> None:
    sizes = {"big": 20, "none": 0, "one": 1, "small": 5}
    parts = tuple(make(name, *({"text": f"{name} {n}"} for n in range(size))) for name, size in sizes.items())
    corpus = load(Several(parts), tokenizer, val_split="last", val_fraction=0.2)
    held = [row.fields["text"] for row in corpus.validation_rows]
    assert held == ["big 16", "big 17", "big 18", "big 19", "small 4"]
    assert len(learned(tokenizer, corpus)) == 26 - len(held)
    # A bad row is no part of a share: those are of the good ones.
    worse = (make("worse", *map(text, range(8)), BAD, BAD), make("b", *map(chat, range(4))))
    corpus = load(Several(worse), tokenizer, val_split="last", val_fraction=0.25, drop_bad_rows=True)
    assert [row.fields for row in corpus.validation_rows] == [text(6), text(7), chat(3)]


def test_of_datasets_of_one_row_each_the_last_is_held_out(make: Any, tokenizer: Any) -> None:
    parts = tuple(make(name, {"text": f"row {name}"}) for name in ("a", "b", "c"))
    corpus = load(Several((*parts, make("none"))), tokenizer, val_split="last")
    assert sorted(learned(tokenizer, corpus)) == ["row a", "row b"]
    assert [row.fields["text"] for row in corpus.validation_rows] == ["row c"]


def test_several_are_one_to_the_token(make: Any, tokenizer: Any, tmp_path: Path) -> None:
    given = [*map(chat, range(5)), *map(text, range(7)), *map(chat, range(4))]
    several = Several((make("a", *given[:5]), make("b", *given[5:12]), make("c", *given[12:])))
    one = Source(write_rows(tmp_path / "whole.jsonl", *given))
    for asked in ({}, {"packing": False}, {"seed": 3, "val_fraction": 0.5}, {"loss_on": "all", "system_prompt": "x"}):
        apart, whole = load(several, tokenizer, **asked), load(one, tokenizer, **asked)
        assert apart.training == whole.training
        assert apart.validation == whole.validation
        assert [row.fields for row in apart.validation_rows] == [row.fields for row in whole.validation_rows]
        assert apart.notices == whole.notices


def test_a_bad_row_is_named_with_its_dataset_and_line(make: Any, tokenizer: Any) -> None:
    several = Several((make("good", *map(text, range(4))), make("worse", text(0), BAD), make("bad", BAD)))
    with pytest.raises(
        RowError, match=r"^dataset worse, line 2: has the format dpo.* 1 more row cannot.*drop_bad_rows"
    ):
        load(several, tokenizer)
    corpus = load(several, tokenizer, drop_bad_rows=True)
    assert (corpus.dropped_rows, corpus.training_rows) == (2, 4)
    assert "2 rows are left out: worse line 2, bad line 1: has the format dpo" in corpus.notices[-1]
    with pytest.raises(RowError, match=r"^none of the 2 rows of these datasets can be trained on: a line 1, b line 1"):
        load(Several((make("a", BAD), make("b", BAD))), tokenizer)


def test_faults_of_every_dataset_keep_their_words(make: Any, tokenizer: Any) -> None:
    broken = {"messages": "none"}
    several = Several((make("a", text(0), BAD), make("b", broken, text(1)), make("c", text(2), BAD)))
    told = [note for note in load(several, tokenizer, drop_bad_rows=True).notices if "left out" in note]
    assert "a line 2, c line 2: has the format dpo" in told[0]
    assert 'b line 1: "messages" must be a list' in told[0]


def test_a_row_that_was_changed_is_named_with_its_dataset(make: Any, tokenizer: Any) -> None:
    parts = (make("a", *map(text, range(4))), make("b", *map(text, range(4))))
    corpus = load(Several(parts), tokenizer, val_split="last")
    parts[1].path.write_text("\n" * 200)
    with pytest.raises(RowError, match=r"^dataset b, line 4: is not there any more"):
        corpus.validation_rows[1]


def test_each_dataset_keeps_its_own_tokens_for_every_job_that_reads_it(make: Any, tokenizer: Any) -> None:
    a, b = make("a", *map(text, range(4))), make("b", *map(text, range(4)))
    load(a, tokenizer)
    told: list[str] = []
    load(Several((a, b)), tokenizer, told)
    assert told == ["a: 4 rows were tokenised before; their tokens are used again."]
    told.clear()
    load(Several((b, a)), tokenizer, told)
    assert [line.split(":")[0] for line in told] == ["b", "a"]


def test_an_empty_dataset_among_others_adds_nothing(make: Any, tokenizer: Any) -> None:
    parts = [
        (name, tokens.tokenise(make(name, *given).path, tokenizer)) for name, given in (("a", []), ("b", [text(1)]))
    ]
    found = tokens.joined(parts)
    assert (found.whose(0), found.place(0), len(found.ends)) == ("b", "b line 1", 1)
