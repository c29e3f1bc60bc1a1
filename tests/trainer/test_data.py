"""What is trained and what is context; what is packed, and in which order; no row lost in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from engine import rows
from engine.rows import Row, RowError
from engine.specs import FinetuneHyperparams
from engine.trainer import data, evaluate, finetune, models
from engine.trainer.batch import IGNORED, Document, collate
from engine.trainer.data import CHATML, Corpus
from tests import tiny
from tests.trainer.conftest import write_rows

END = "<|im_end|>"
TEMPLATES = {"with generation markers": tiny.TEMPLATE, "without": CHATML}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def chat(*messages: dict[str, str], line: int = 1) -> Row:
    return Row(line, rows.MESSAGES, {"messages": list(messages)})


def trained(tokenizer: Any, document: Document) -> list[str]:
    """Return each unbroken run of trained tokens as text."""
    runs: list[list[int]] = [[]]
    for token, label in zip(document.ids, document.labels, strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


@pytest.fixture(params=TEMPLATES)
def templated(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    tokenizer.chat_template = TEMPLATES[request.param]
    return tokenizer


def test_exactly_what_the_assistant_wrote_is_trained_with_its_end_of_turn(templated: Any) -> None:
    row = chat({"role": "system", "content": "be brief"}, user("two plus two?"), answer("It is four."))
    (document,) = data.encode(templated, row, 500)
    assert trained(templated, document) == [f"It is four.{END}"]
    assert templated.decode(document.ids).startswith("<|im_start|>system\nbe brief<|im_end|>")


def test_every_answer_of_a_long_conversation_is_trained_and_no_question(templated: Any) -> None:
    turns = [turn for n in range(4) for turn in (user(f"question {n}?"), answer(f"Answer {n} — ünïcode 漢字."))]
    (document,) = data.encode(templated, chat(*turns), 2000)
    assert trained(templated, document) == [f"Answer {n} — ünïcode 漢字.{END}" for n in range(4)]


def test_an_answer_that_quotes_the_question_is_told_from_it_by_its_place(templated: Any) -> None:
    (document,) = data.encode(templated, chat(user("say yes"), answer("say yes")), 500)
    assert trained(templated, document) == [f"say yes{END}"]
    assert document.labels.index(next(x for x in document.labels if x != IGNORED)) > len(document.ids) // 2


def test_of_a_conversation_that_the_assistant_opens_its_words_alone_are_trained(templated: Any) -> None:
    (document,) = data.encode(templated, chat(answer("Welcome."), user("thanks"), answer("Sure.")), 500)
    assert trained(templated, document) == [f"Welcome.{END}", f"Sure.{END}"]


def test_an_answer_that_ends_in_a_space_keeps_it(templated: Any) -> None:
    (document,) = data.encode(templated, chat(user("a"), answer("one two ")), 500)
    assert trained(templated, document) == [f"one two {END}"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "the chat template refuses this conversation.*alternate"),
        ("{{ messages[0]['nothing']['there'] }}", "the chat template refuses this conversation"),
        (
            "{% for m in messages %}[{{ m.role }}]{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}",
            "rewrites earlier turns",
        ),
    ],
)
def test_a_template_that_fails_is_told_with_the_line_of_the_row(tokenizer: Any, template: str, words: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(RowError, match=f"^line 41: .*{words}"):
        data.encode(tokenizer, chat(user("a"), answer("b"), user("c"), answer("d"), line=41), 500)


def test_of_prompt_and_completion_the_completion_and_the_end_are_trained(tokenizer: Any) -> None:
    row = Row(1, rows.PROMPT_COMPLETION, {"prompt": "two plus two is ", "completion": "four, I think"})
    (document,) = data.encode(tokenizer, row, 500)
    assert trained(tokenizer, document) == [f"four, I think{tokenizer.eos_token}"]


def test_of_text_every_token_is_trained_and_the_end(tokenizer: Any) -> None:
    (document,) = data.encode(tokenizer, Row(1, rows.TEXT, {"text": "all of it"}), 500)
    assert trained(tokenizer, document) == [f"all of it{tokenizer.eos_token}"]


def test_an_end_that_the_tokenizer_adds_itself_is_trained_too(tokenizer: Any) -> None:
    end = tokenizer.eos_token
    process = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = process
    (document,) = data.encode(tokenizer, Row(1, rows.TEXT, {"text": "all of it"}), 500)
    assert document.ids.count(tokenizer.eos_token_id) == 1
    assert trained(tokenizer, document) == [f"all of it{end}"]


def test_a_conversation_cut_to_seq_len_says_so_and_keeps_its_beginning(tokenizer: Any) -> None:
    row = chat(user("a"), answer("long " * 200))
    (whole,) = data.encode(tokenizer, row, 5000)
    (cut,) = data.encode(tokenizer, row, 64)
    assert (cut.ids, cut.labels, cut.truncated) == (whole.ids[:64], whole.labels[:64], True)
    assert not whole.truncated


def test_a_row_with_nothing_left_to_train_after_truncation_stops_with_its_line(tokenizer: Any) -> None:
    with pytest.raises(RowError, match=r"^line 9: has no token to train on after truncation to seq_len; raise"):
        data.encode(tokenizer, chat(user("long " * 200), answer("b"), line=9), 64)


def test_a_long_text_goes_on_in_further_documents_and_loses_nothing(tokenizer: Any) -> None:
    row = Row(1, rows.TEXT, {"text": "never lose a word " * 40})
    (whole,) = data.encode(tokenizer, row, 100_000)
    # A rest of one token has nothing to be predicted from, so it is left.
    for seq_len in (16, 17, 100, len(whole.ids)):
        parts = data.encode(tokenizer, row, seq_len)
        rest = len(whole.ids) % seq_len == 1
        assert [token for part in parts for token in part.ids] == whole.ids[: -1 if rest else None]
        assert all(len(part.ids) <= seq_len and part.labels == part.ids and not part.truncated for part in parts)


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=80)


@given(lengths, st.integers(0, 10))
@settings(deadline=None)
def test_packing_uses_every_document_once_fits_and_is_the_same_each_time(sizes: list[int], more: int) -> None:
    seq_len = max(sizes) + more
    documents = [Document(list(range(size)), list(range(size))) for size in sizes]
    bins = data.pack(documents, seq_len)
    assert sorted(id(document) for each in bins for document in each) == sorted(id(document) for document in documents)
    assert all(0 < sum(len(document.ids) for document in each) <= seq_len for each in bins)
    again = data.pack(documents, seq_len)
    assert [[id(document) for document in each] for each in again] == [[id(d) for d in each] for each in bins]
    # Best fit: no two bins could be one, but for the single token that is not worth a document.
    fills = sorted(sum(len(document.ids) for document in each) for each in bins)
    assert len(fills) < 2 or fills[0] + fills[1] >= seq_len


def test_a_batch_restarts_positions_and_predicts_no_documents_first_token() -> None:
    a, b, c = (Document([n] * size, [n] * size) for n, size in ((1, 3), (2, 2), (3, 4)))
    batch = collate([[a, b], [c]], pad=0)
    assert batch.input_ids.tolist() == [[1, 1, 1, 2, 2], [3, 3, 3, 3, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert batch.labels.tolist() == [[IGNORED, 1, 1, IGNORED, 2], [IGNORED, 3, 3, 3, IGNORED]]
    assert (batch.tokens, batch.targets) == (9, 6)


def corpus_of(count: int) -> Corpus:
    training = [[Document([n], [n])] for n in range(count)]
    return Corpus(training, [], count, [], 0, count, 0)


def numbers(corpus: Corpus, first: int, count: int, seed: int) -> list[int]:
    return [sequence[0].ids[0] for sequence in corpus.sequences(first, count, seed)]


@given(st.integers(1, 30), st.integers(0, 100), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_the_order_is_a_function_of_seed_and_position_and_each_epoch_a_permutation(
    size: int, first: int, count: int, seed: int
) -> None:
    corpus = corpus_of(size)
    endless = numbers(corpus, 0, 150, seed)
    assert numbers(corpus_of(size), first, count, seed) == numbers(corpus, 0, first + count, seed)[first:]
    for epoch in range(150 // size):
        assert sorted(endless[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    corpus = corpus_of(20)
    orders = [numbers(corpus, 20 * epoch, 20, seed) for epoch in range(2) for seed in range(2)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_loaded_corpus_holds_every_row_once_and_counts_what_was_cut(tmp_path: Path, tokenizer: Any) -> None:
    texts = [{"text": f"row number {n} of the file"} for n in range(38)]
    long = {"messages": [user("a"), answer("long " * 100)]}
    path = write_rows(tmp_path / "rows.jsonl", *texts, long, long)
    corpus = data.load(path, tokenizer, seq_len=64, val_fraction=0.25, seed=3)
    assert (corpus.training_rows, len(corpus.validation_rows), corpus.truncated_rows) == (30, 10, 2)
    documents = [document for part in (corpus.training, corpus.validation) for each in part for document in each]
    found = sorted(tokenizer.decode(document.ids[:-1]) for document in documents if not document.truncated)
    assert found == sorted(row["text"] for row in texts)
    assert sum(len(d.ids) for each in corpus.training for d in each) == corpus.training_tokens
    again = data.load(path, tokenizer, seq_len=64, val_fraction=0.25, seed=3)
    assert again == corpus
    other = data.load(path, tokenizer, seq_len=64, val_fraction=0.25, seed=4)
    assert [row.line for row in other.validation_rows] != [row.line for row in corpus.validation_rows]


def test_a_dataset_of_one_row_is_refused_and_of_two_is_split(tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", {"text": "one row"})
    with pytest.raises(RowError, match="two are needed"):
        data.load(path, tokenizer, seq_len=64, val_fraction=0.05, seed=0)
    write_rows(path, {"text": "one row"}, {"text": "two rows"})
    corpus = data.load(path, tokenizer, seq_len=64, val_fraction=0.89, seed=0)
    assert (corpus.training_rows, len(corpus.validation_rows)) == (1, 1)


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "with adapters"])
def test_packed_loss_equals_the_loss_of_each_document_alone(tiny_model: Path, tokenizer: Any, adapters: bool) -> None:
    model = models.load_model(tiny_model, torch.float32)
    if adapters:
        model = finetune.add_adapters(model, FinetuneHyperparams(lora_rank=4))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.eval()
    device = torch.device("cpu")
    made = [chat(user(f"{n} " * (n % 7)), answer("so " * (1 + n % 5))) for n in range(20)]
    documents = [document for row in made for document in data.encode(tokenizer, row, 128)]
    bins = data.pack(documents, 128)
    assert max(len(each) for each in bins) > 2
    with torch.no_grad():
        alone = [float(evaluate.summed_loss(model, collate([[document]], 0), device)) for document in documents]
        packed = collate(bins, 0)
        together = float(evaluate.summed_loss(model, packed, device))
        apart = sum(float(evaluate.summed_loss(model, collate([each], 0), device)) for each in bins)
    assert together / packed.targets == pytest.approx(sum(alone) / packed.targets, abs=1e-4)
    assert apart / packed.targets == pytest.approx(sum(alone) / packed.targets, abs=1e-4)


def test_a_sample_is_asked_for_also_where_the_assistant_speaks_first_or_alone(templated: Any) -> None:
    shown, prompt = evaluate.sample_prompt(templated, chat(answer("Welcome."), user("thanks"), answer("Sure.")))
    assert shown == "thanks"
    assert prompt.endswith("<|im_start|>assistant\n")
    shown, prompt = evaluate.sample_prompt(templated, chat(answer("Welcome.")))
    assert shown
    assert shown in prompt
