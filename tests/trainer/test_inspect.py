"""The mask view is the batch of the first step, to the token; its figures are those of the job."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import inspection
from engine.data.inspection import CONTEXT, PADDING, TRAINED, Inspection, Request
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.trainer import inspect
from engine.trainer.data import corpora
from engine.trainer.data.batch import IGNORED, collate_rows
from engine.trainer.data.corpora import Source
from tests import tiny
from tests.trainer.conftest import write_rows

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.fixture
def ask(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Ask the tool about a file as the service does, and read its answer."""

    def asked(path: Path, model: Path = tiny_model, **fields: Any) -> Inspection:
        request = Request(str(path), "a" * 64, "mixed", str(tmp_path / "cache"), str(model), **fields)
        code = inspect.main(json.dumps(asdict(request)))
        said = capsys.readouterr()
        assert code == 0, said.err
        return inspection.read(said.out, [])

    return asked


def test_the_batch_is_that_of_the_first_step(ask: Any, tmp_path: Path, tokenizer: Any) -> None:
    path = tiny.make_rows(tmp_path / "sums.jsonl")
    found = ask(path, seq_len=128)
    corpus = corpora.load(Source(path), tokenizer, FinetuneHyperparams(seq_len=128))
    (sequence,), (wanted,) = found.batch, corpus.sequences(0, 1, seed=0)
    assert [[token for part in view.stretches for token in part.ids] for view in sequence.documents] == [
        document.ids for document in wanted
    ]
    for view, document in zip(sequence.documents, wanted, strict=True):
        uses = [part.use for part in view.stretches for _ in part.ids]
        assert uses == [CONTEXT if label == IGNORED else TRAINED for label in document.labels]
        answers = "".join(part.text for part in view.stretches if part.use == TRAINED)
        assert f"The sum of {view.line - 1} and {view.line} is {2 * view.line - 1}.<|im_end|>" == answers
    assert (found.training_rows, found.held_out_rows) == (corpus.training_rows, len(corpus.validation_rows))
    assert (found.sequences, found.notices) == (len(corpus.training), corpus.notices)


def test_shorter_sequences_of_a_batch_are_filled_up_and_shown_so(tokenizer: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *({"text": "so " * n} for n in (40, 3, 5)))
    corpus = corpora.load(Source(path), tokenizer, FinetuneHyperparams(seq_len=64, packing=False))
    sequences = [corpus.training[0], corpus.training[1]]
    shown = inspect.views(tokenizer, sequences, [corpus.training.rows(0), corpus.training.rows(1)], corpus.pad)
    batch = collate_rows(sequences, corpus.pad)
    for row, view in enumerate(shown):
        ids = [token for document in view.documents for part in document.stretches for token in part.ids]
        assert [*ids, *view.padding.ids] == batch.input_ids[row].tolist()
        assert view.padding.use == PADDING
    assert sorted(len(view.padding.ids) > 0 for view in shown) == [False, True]
    counted = sum(part.use == TRAINED for v in shown for d in v.documents for part in d.stretches for _ in part.ids)
    assert counted == batch.target_count


def test_figures_are_those_of_the_rows(ask: Any, tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "rows.jsonl", *({"messages": [USER, {**ANSWER, "content": "so " * n}]} for n in range(1, 101))
    )
    found = ask(path, seq_len=64)
    whole = ask(path, seq_len=5000)
    assert (found.rows, found.bad_rows, found.stops, whole.truncated_rows) == (100, 0, "", 0)
    assert found.tokens == whole.tokens - found.lost_tokens
    assert (found.p50, found.p95, found.p99, found.max) == (whole.p50, whole.p95, whole.p99, whole.max)
    assert found.p50 < found.p95 < found.p99 <= found.max
    assert sum(bucket.rows for bucket in found.histogram) == 100
    assert found.truncated_share == found.truncated_rows / 100 > 0.5
    assert 0 < found.trained_share < 1


def test_what_a_job_is_told_of_the_rows_shows_in_the_mask(ask: Any, tmp_path: Path) -> None:
    turns = [USER, {**ANSWER, "content": "First."}, USER, {**ANSWER, "content": "Second."}]
    path = write_rows(tmp_path / "rows.jsonl", *[{"messages": turns}] * 3)

    def texts(use: str, **asked: Any) -> list[str]:
        (sequence, *_) = ask(path, **asked).batch
        return [part.text for part in sequence.documents[0].stretches if part.use == use]

    assert texts(TRAINED) == ["First.<|im_end|>", "Second.<|im_end|>"]
    assert texts(TRAINED, loss_on="last_answer") == ["Second.<|im_end|>"]
    assert texts(CONTEXT, loss_on="all") in ([], ["<|im_start|>"])
    assert texts(CONTEXT, system_prompt="Be brief.")[0].startswith("<|im_start|>system\nBe brief.<|im_end|>")


@pytest.mark.parametrize("bad", [{"messages": [USER, {**ANSWER, "content": "x"}]}, {"text": " "}])
def test_bad_rows_are_shown_by_reason_with_what_a_job_would_say(
    ask: Any, tmp_path: Path, tiny_model: Path, tokenizer: Any, bad: dict[str, Any]
) -> None:
    tokenizer.chat_template = (
        "{% if messages[1].content == 'x' %}{{ raise_exception('no x') }}{% endif %}" + tiny.TEMPLATE
    )
    model = tmp_path / "picky"
    tokenizer.save_pretrained(model)
    (model / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    path = write_rows(tmp_path / "rows.jsonl", *[{"messages": [USER, ANSWER]}] * 4, bad, bad)
    found = ask(path, model)
    assert found.stops.startswith("line 5: ")
    assert "set drop_bad_rows" in found.stops
    assert [(each.rows, each.lines) for each in found.bad] == [(2, (5, 6))]
    assert (found.rows, found.bad_rows, found.training_rows + found.held_out_rows) == (6, 2, 4)
    assert found.batch


@pytest.mark.parametrize("count", [0, 1])
def test_where_there_is_nothing_to_train_on_the_reason_is_shown_and_no_batch(
    ask: Any, tmp_path: Path, count: int
) -> None:
    dpo = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = write_rows(tmp_path / "rows.jsonl", *[{"text": "one row"}] * count, *[dpo] * (2 - 2 * count))
    found = ask(path)
    assert found.stops.startswith("the dataset has one row" if count else "none of its 2 rows can be trained on")
    assert (found.batch, found.sequences) == ((), 0)


def test_a_request_that_fails_says_why_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = Request(str(tmp_path / "no.jsonl"), "a", "mixed", str(tmp_path), str(tmp_path / "no-model"))
    assert inspect.main(json.dumps(asdict(request))) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "no-model" in said.err.splitlines()[-1]


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=200))
@settings(deadline=None, max_examples=200)
def test_a_histogram_counts_every_row_once_in_buckets_without_gaps(sizes: list[int]) -> None:
    buckets = inspect.histogram(np.array(sizes))
    assert len(buckets) <= inspect.BUCKETS + 1
    assert buckets[-1].high >= max(sizes)
    for bucket in buckets:
        assert bucket.rows == sum(bucket.low <= size <= bucket.high for size in sizes)
    assert all(one.high + 1 == two.low for one, two in pairwise(buckets))
    assert sum(bucket.rows for bucket in buckets) == len(sizes)
