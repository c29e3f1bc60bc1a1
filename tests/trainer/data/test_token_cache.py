"""Kept tokens: used again when nothing that matters changed, made again when it did or when they are damaged."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.data.rows import RowError
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.journal import JournalWriter
from engine.manifest import MANIFEST
from engine.trainer import finetune
from engine.trainer.data import corpora, token_cache
from engine.trainer.data.corpora import CHATML, Source
from engine.trainer.reporter import Reporter
from tests import tiny
from tests.trainer.conftest import Bench

AGAIN = "their tokens are used again"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tiny.make_rows(tmp_path / "sums.jsonl", 24), "a" * 64, "messages", tmp_path / "cache")


def load(source: Source, tokenizer: Any, **hyperparams: Any) -> tuple[corpora.Corpus, list[str]]:
    """Load a dataset; also return what was logged."""
    told: list[str] = []
    settings = FinetuneHyperparams.model_validate({"seq_len": 64, **hyperparams})
    return corpora.load(source, tokenizer, settings, log=told.append), told


def folders(source: Source) -> list[Path]:
    assert source.cache is not None
    return sorted(source.cache.iterdir())


def test_the_second_time_nothing_is_tokenised_and_the_corpus_is_the_same(source: Source, tokenizer: Any) -> None:
    first, told = load(source, tokenizer)
    assert told == []
    second, told = load(source, tokenizer)
    assert told == [f"24 rows were tokenised before; {AGAIN}."]
    assert second == first


def test_one_cache_serves_every_setting_that_does_not_change_the_tokens(source: Source, tokenizer: Any) -> None:
    load(source, tokenizer)
    for asked in ({"seq_len": 32}, {"loss_on": "all"}, {"packing": False}, {"seed": 9}, {"val_fraction": 0.5}):
        assert AGAIN in load(source, tokenizer, **asked)[1][0]
    assert len(folders(source)) == 1


def test_other_data_another_format_template_or_tokenizer_has_a_cache_of_its_own(source: Source, tokenizer: Any) -> None:
    def key(**changed: str) -> str:
        form = changed.get("form", "messages")
        return token_cache.key(tokenizer, data_sha256=changed.get("data_sha256", "a"), form=form)

    keys = {key(), key(data_sha256="b"), key(form="text")}
    tokenizer.chat_template = CHATML
    keys.add(key())
    tokenizer.add_tokens(["<new>"])
    keys.add(key())
    assert len(keys) == 5
    assert key() == key()


def test_what_a_tokenizer_was_last_asked_for_changes_no_key_and_no_token(source: Source, tokenizer: Any) -> None:
    fresh, _ = load(source, tokenizer)
    tokenizer("some words", truncation=True, max_length=8, padding="max_length")
    assert tokenizer.backend_tokenizer.truncation
    again, told = load(source, tokenizer)
    assert AGAIN in told[0]
    tokenizer("some words", truncation=True, max_length=8, padding="max_length")
    unkept, told = load(replace(source, cache=source.path.parent / "other"), tokenizer)
    assert told == []
    assert fresh == again == unkept


@pytest.mark.parametrize("file", [MANIFEST, token_cache.ARRAYS])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_cache_is_made_again(source: Source, tokenizer: Any, file: str, damage: str) -> None:
    whole, _ = load(source, tokenizer)
    (folder,) = folders(source)
    content = (folder / file).read_bytes()
    if damage == "gone":
        (folder / file).unlink()
    else:
        middle = len(content) // 2
        (folder / file).write_bytes(
            content[:middle] + (b"\xff" + content[middle + 1 :] if damage == "changed" else b"")
        )
    again, told = load(source, tokenizer)
    assert again == whole
    assert told[0].startswith("The kept tokens are damaged (")
    assert AGAIN in load(source, tokenizer)[1][0]


def test_faults_are_kept_with_the_tokens(source: Source, tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if '11 plus' in messages[0].content %}{{ raise_exception('no 11') }}{% endif %}" + CHATML
    )
    for _ in range(2):
        with pytest.raises(RowError, match=r"^line 12: the chat template refuses.*no 11"):
            load(source, tokenizer)
    assert len(folders(source)) == 1


def test_a_cache_that_cannot_be_written_stops_nobody(source: Source, tokenizer: Any) -> None:
    assert source.cache is not None
    source.cache.write_text("a file where the folder would be")
    corpus, told = load(source, tokenizer)
    assert corpus.training_rows == 23
    assert "could not be kept" in told[0]


def test_what_a_dead_process_left_is_cleared_and_a_living_ones_stays(source: Source, tokenizer: Any) -> None:
    assert source.cache is not None
    dead, living = source.cache / ".k.stage-999999999", source.cache / f".k.stage-{os.getppid()}"
    for left in (dead, living):
        left.mkdir(parents=True)
    load(source, tokenizer)
    assert not dead.exists()
    assert living.exists()


def test_a_worker_that_resumes_does_not_tokenise_again(bench: Bench, tmp_path: Path) -> None:
    logs: list[str] = []

    class Listening(Reporter):
        def log(self, text: str, stream: str = "train") -> None:
            logs.append(text)

    for _ in range(2):
        order = replace(bench.order(), cache_path=str(tmp_path / "cache"), dataset_format="messages")
        reporter = Listening(JournalWriter(bench.journal_path(), order.fence))
        finetune.prepare(order, FinetuneHyperparams.model_validate(order.hyperparams), reporter)
    assert [AGAIN in text for text in logs if "tokenised" in text] == [True]
