"""What is trained and what is context; what is packed, and in which order; no row lost in silence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from engine.data import rows
from engine.data.rows import Row, RowError
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.trainer import evaluate
from engine.trainer.data import corpora, documents, tokens
from engine.trainer.data.batch import IGNORED, Document
from engine.trainer.data.corpora import CHATML, Corpus, Source
from engine.trainer.data.documents import Documents, Packs
from tests import tiny
from tests.trainer.conftest import write_rows

END = "<|im_end|>"
TEMPLATES = {"with generation markers": tiny.TEMPLATE, "without": CHATML}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def chat(*messages: dict[str, str]) -> dict[str, Any]:
    return {"messages": list(messages)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def fitted(
    path: Path, tokenizer: Any, *fields: dict[str, Any], seq_len: int = 500, everything: bool = False
) -> Documents:
    """Write rows, and cut them as a job does."""
    return documents.fit(tokens.tokenise(write_rows(path, *fields), tokenizer), seq_len=seq_len, everything=everything)


def encoded(
    path: Path, tokenizer: Any, fields: dict[str, Any], seq_len: int = 500, *, everything: bool = False
) -> list[Document]:
    """Return the documents of one good row."""
    found = fitted(path, tokenizer, fields, seq_len=seq_len, everything=everything)
    assert not found.bad
    return [found.document(number) for number in range(len(found))]


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


def test_exactly_what_the_assistant_wrote_is_trained_with_its_end_of_turn(path: Path, templated: Any) -> None:
    row = chat({"role": "system", "content": "be brief"}, user("two plus two?"), answer("It is four."))
    (document,) = encoded(path, templated, row)
    assert trained(templated, document) == [f"It is four.{END}"]
    assert templated.decode(document.ids).startswith("<|im_start|>system\nbe brief<|im_end|>")


def test_every_answer_of_a_long_conversation_is_trained_and_no_question(path: Path, templated: Any) -> None:
    turns = [turn for n in range(4) for turn in (user(f"question {n}?"), answer(f"Answer {n} — ünïcode 漢字."))]
    (document,) = encoded(path, templated, chat(*turns), 2000)
    assert trained(templated, document) == [f"Answer {n} — ünïcode 漢字.{END}" for n in range(4)]


def test_an_answer_that_quotes_the_question_is_told_from_it_by_its_place(path: Path, templated: Any) -> None:
    (document,) = encoded(path, templated, chat(user("say yes"), answer("say yes")))
    assert trained(templated, document) == [f"say yes{END}"]
    assert document.labels.index(next(x for x in document.labels if x != IGNORED)) > len(document.ids) // 2


def test_of_a_conversation_that_the_assistant_opens_its_words_alone_are_trained(path: Path, templated: Any) -> None:
    (document,) = encoded(path, templated, chat(answer("Welcome."), user("thanks"), answer("Sure.")))
    assert trained(templated, document) == [f"Welcome.{END}", f"Sure.{END}"]


def test_an_answer_that_ends_in_a_space_keeps_it(path: Path, templated: Any) -> None:
    (document,) = encoded(path, templated, chat(user("a"), answer("one two ")))
    assert trained(templated, document) == [f"one two {END}"]


def test_of_prompt_and_completion_the_completion_and_the_end_are_trained(path: Path, tokenizer: Any) -> None:
    (document,) = encoded(path, tokenizer, {"prompt": "two plus two is ", "completion": "four, I think"})
    assert trained(tokenizer, document) == [f"four, I think{tokenizer.eos_token}"]


def test_of_text_every_token_is_trained_and_the_end(path: Path, tokenizer: Any) -> None:
    (document,) = encoded(path, tokenizer, {"text": "all of it"})
    assert trained(tokenizer, document) == [f"all of it{tokenizer.eos_token}"]


def test_an_end_that_the_tokenizer_adds_itself_is_trained_too(path: Path, tokenizer: Any) -> None:
    end = tokenizer.eos_token
    process = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = process
    (document,) = encoded(path, tokenizer, {"text": "all of it"})
    assert document.ids.count(tokenizer.eos_token_id) == 1
    assert trained(tokenizer, document) == [f"all of it{end}"]


def test_a_conversation_cut_to_seq_len_says_so_and_keeps_its_beginning(path: Path, tokenizer: Any) -> None:
    row = chat(user("a"), answer("long " * 200))
    (whole,) = encoded(path, tokenizer, row, 5000)
    (cut,) = encoded(path, tokenizer, row, 64)
    assert (cut.ids, cut.labels, cut.truncated) == (whole.ids[:64], whole.labels[:64], True)
    assert not whole.truncated


def test_a_long_text_goes_on_in_further_documents_and_loses_nothing(path: Path, tokenizer: Any) -> None:
    row = {"text": "never lose a word " * 40}
    (whole,) = encoded(path, tokenizer, row, 100_000)
    # A rest of one token has nothing to be predicted from, so it is left.
    for seq_len in (16, 17, 100, len(whole.ids)):
        parts = encoded(path, tokenizer, row, seq_len)
        rest = len(whole.ids) % seq_len == 1
        assert [token for part in parts for token in part.ids] == whole.ids[: -1 if rest else None]
        assert all(len(part.ids) <= seq_len and part.labels == part.ids and not part.truncated for part in parts)


def test_with_loss_on_all_every_token_is_trained(path: Path, templated: Any) -> None:
    (document,) = encoded(path, templated, chat(user("a"), answer("b")), everything=True)
    assert document.labels == document.ids


@pytest.fixture(scope="session")
def shared_tokenizer(_loaded_tokenizer: Any) -> Any:
    """A tokenizer that no test changes."""
    return _loaded_tokenizer


texts = st.text(st.sampled_from("ab \n漢🙂é"), min_size=1, max_size=30).filter(str.strip)


@given(prompt=texts, completion=texts)
@settings(deadline=None, max_examples=60)
def test_a_token_is_trained_that_holds_a_character_of_a_span(
    shared_tokenizer: Any, prompt: str, completion: str
) -> None:
    text, span = prompt + completion, (len(prompt), len(prompt + completion))
    (encoding,) = shared_tokenizer.backend_tokenizer.encode_batch([text])
    wanted = [begin < end and begin < span[1] and end > span[0] for begin, end in encoding.offsets]
    assert tokens.trained(encoding, [span]).tolist() == wanted


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=80)


@given(lengths, st.integers(0, 10))
@settings(deadline=None)
def test_packing_uses_every_document_once_fits_and_is_the_same_each_time(sizes: list[int], more: int) -> None:
    seq_len = max(sizes) + more
    bins = corpora.pack(sizes, seq_len)
    assert sorted(number for each in bins for number in each) == list(range(len(sizes)))
    fills = sorted(sum(sizes[number] for number in each) for each in bins)
    assert 0 < fills[0] <= fills[-1] <= seq_len
    assert corpora.pack(sizes, seq_len) == bins
    # Best fit: no two bins could be one, but for the single token that is not worth a document.
    assert len(fills) < 2 or fills[0] + fills[1] >= seq_len


def corpus_of(count: int) -> Corpus:
    numbers = np.arange(count, dtype=np.int64)
    one_each = tokens.Tokens(
        ids=numbers.astype(np.int32),
        answers=np.ones(count, np.bool_),
        ends=numbers + 1,
        lines=numbers + 1,
        places=numbers,
        goes_on=np.zeros(count, np.bool_),
        reasons=np.zeros(count, np.int32),
    )
    made = Documents(one_each, one_each.answers, numbers, np.ones(count, np.int64), numbers, {}, numbers[:0], count)
    return Corpus(Packs(made, [[n] for n in range(count)]), Packs(made, []), count, [], 0, count, 0)


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


def load(path: Path, tokenizer: Any, told: list[str] | None = None, **hyperparams: Any) -> Corpus:
    asked = FinetuneHyperparams.model_validate({"seq_len": 64, **hyperparams})
    return corpora.load(Source(path), tokenizer, asked, log=(told if told is not None else []).append)


def all_documents(corpus: Corpus) -> list[Document]:
    return [document for part in (corpus.training, corpus.validation) for each in part for document in each]


def test_a_loaded_corpus_holds_every_row_once_and_counts_what_was_cut(path: Path, tokenizer: Any) -> None:
    plain = [{"text": f"row number {n} of the file"} for n in range(38)]
    long = {"messages": [user("a"), answer("long " * 100)]}
    write_rows(path, *plain, long, long)
    corpus = load(path, tokenizer, val_fraction=0.25, seed=3)
    assert (corpus.training_rows, len(corpus.validation_rows), corpus.truncated_rows) == (30, 10, 2)
    found = sorted(tokenizer.decode(one.ids[:-1]) for one in all_documents(corpus) if not one.truncated)
    assert found == sorted(row["text"] for row in plain)
    assert sum(len(d.ids) for each in corpus.training for d in each) == corpus.training_tokens
    assert load(path, tokenizer, val_fraction=0.25, seed=3) == corpus
    other = load(path, tokenizer, val_fraction=0.25, seed=4)
    assert [row.line for row in other.validation_rows] != [row.line for row in corpus.validation_rows]
    (longest,) = corpus.training.longest(1)
    assert sum(len(one.ids) for one in longest) == max(sum(len(one.ids) for one in each) for each in corpus.training)


def test_the_notices_say_what_is_trained_and_which_seq_len_would_keep_all(path: Path, tokenizer: Any) -> None:
    write_rows(path, *(chat(user("a"), answer("so " * n)) for n in range(1, 101)))
    kept, cut = load(path, tokenizer).notices
    whole = tokens.tokenise(path, tokenizer).sizes
    count, lost = int((whole > 64).sum()), int((whole[whole > 64] - 64).sum())
    said = rf"95 rows to train on \([\d,]+ tokens in \d+ packed sequences, \d+% full\), 5 held out, {count} truncated\."
    assert re.fullmatch(said, kept)
    assert cut == (
        f"{count} rows ({count:.1f}%) longer than seq_len 64 lost {lost:,} tokens at the end; seq_len {whole.max()} "
        f"would keep every row whole, seq_len {sorted(whole)[98]} all but one in a hundred."
    )
    assert load(path, tokenizer, seq_len=int(whole.max())).truncated_rows == 0


def test_without_packing_each_row_is_a_sequence_and_the_tokens_are_the_same(path: Path, tokenizer: Any) -> None:
    write_rows(path, *(chat(user("a"), answer("so " * n)) for n in range(1, 21)))
    packed, apart = load(path, tokenizer), load(path, tokenizer, packing=False)
    assert all(len(each) == 1 for each in apart.training)
    assert len(apart.training) == 19 > len(packed.training)
    assert sorted(one.ids for one in all_documents(packed)) == sorted(one.ids for one in all_documents(apart))


def test_validation_rows_come_in_a_shape_that_a_sample_can_be_asked_of(path: Path, tokenizer: Any) -> None:
    turns = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]
    write_rows(path, {"conversations": turns}, {"instruction": "a?", "output": "b"})
    (held,) = load(path, tokenizer).validation_rows
    assert (held.shape, held.fields["messages"][0]["content"]) == ("messages", "a?")
    assert evaluate.sample_prompt(tokenizer, held)[0] == "a?"


# Bad rows ----------------------------------------------------------------------------------------------------------


GOOD = chat(user("a"), answer("b"))
PICKY = "{% if messages[0].content == 'x' %}{{ raise_exception('no x') }}{% endif %}" + tiny.TEMPLATE
HIDING = "{% for m in messages %}[{{ m.role }}]{% endfor %}"


@pytest.mark.parametrize(
    ("bad", "template", "words"),
    [
        (
            chat(user("long " * 200), answer("b")),
            tiny.TEMPLATE,
            "has no token to train on after truncation to seq_len; raise",
        ),
        (chat(user("x"), answer("b")), PICKY, r"the chat template refuses this conversation \(no x\)"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            tiny.TEMPLATE,
            "has the format dpo, which a fine-tune cannot",
        ),
    ],
    ids=["nothing left", "template", "preference"],
)
def test_a_bad_row_stops_the_job_with_its_line_or_is_dropped_and_counted(
    path: Path, tokenizer: Any, bad: dict[str, Any], template: str, words: str
) -> None:
    tokenizer.chat_template = template
    write_rows(path, *[GOOD] * 8, bad, *[GOOD] * 3, bad, GOOD)
    with pytest.raises(RowError, match=f"^line 9: {words}.*1 more row cannot be used.*set drop_bad_rows"):
        load(path, tokenizer)
    corpus = load(path, tokenizer, drop_bad_rows=True)
    assert (corpus.training_rows + len(corpus.validation_rows), corpus.dropped_rows) == (12, 2)
    assert "2 rows are left out: lines 9, 13: " in corpus.notices[-1]
    assert all(tokenizer.decode(one.ids).count("b<|im_end|>") == 1 for one in all_documents(corpus))


@pytest.mark.parametrize("drop", [False, True])
def test_where_all_rows_are_bad_the_job_fails_with_the_reason(path: Path, tokenizer: Any, drop: bool) -> None:
    tokenizer.chat_template = HIDING
    write_rows(path, *[GOOD] * 7)
    with pytest.raises(
        RowError, match=r"none of its 7 rows can be trained on: lines 1, 2, 3, 4, 5 and 2 more: the chat"
    ):
        load(path, tokenizer, drop_bad_rows=drop)


def test_a_template_that_hides_the_answers_will_do_for_loss_on_all(path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = HIDING
    write_rows(path, *[GOOD] * 7)
    corpus = load(path, tokenizer, loss_on="all")
    assert corpus.training_rows == 6
    assert all(one.labels == one.ids for one in all_documents(corpus))


def test_a_line_that_was_changed_since_the_import_stops_the_job(path: Path, tokenizer: Any) -> None:
    path.write_text(json.dumps(GOOD) + "\n{\n" + json.dumps(GOOD) + "\n")
    with pytest.raises(RowError, match=r"^line 2: is not valid JSON"):
        load(path, tokenizer)


def test_a_dataset_of_one_row_is_refused_and_of_two_is_split(path: Path, tokenizer: Any) -> None:
    write_rows(path, {"text": "one row"})
    with pytest.raises(RowError, match="two are needed"):
        load(path, tokenizer, val_fraction=0.05)
    write_rows(path, {"text": "one row"}, {"text": "two rows"})
    corpus = load(path, tokenizer, val_fraction=0.89)
    assert (corpus.training_rows, len(corpus.validation_rows)) == (1, 1)


def test_a_tokenizer_that_cannot_place_its_tokens_is_refused_with_the_remedy(path: Path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"Slow\) cannot say where its tokens stand.*tokenizer\.json"):
        tokens.tokenise(write_rows(path, GOOD), Slow())


def test_progress_tells_rows_share_and_rate(path: Path, tokenizer: Any) -> None:
    batch = tokens.BATCH_ROWS
    write_rows(path, *[{"text": "a"}] * (4 * batch))
    told: list[str] = []
    ticks = iter(range(100))
    found = tokens.tokenise(path, tokenizer, tell=told.append, clock=lambda: float(next(ticks)))
    # A batch is counted when it is done, a tick after the next was begun.
    assert told == [
        f"tokenising rows: {batch:,} (25%, {batch / 2:,.0f} rows/s)",
        f"tokenising rows: {2 * batch:,} (50%, {2 * batch / 3:,.0f} rows/s)",
        f"tokenising rows: {3 * batch:,} (75%, {3 * batch / 4:,.0f} rows/s)",
    ]
    assert found.lines.tolist() == list(range(1, 4 * batch + 1))


def test_a_sample_is_asked_for_also_where_the_assistant_speaks_first_or_alone(templated: Any) -> None:
    first = Row(1, rows.MESSAGES, chat(answer("Welcome."), user("thanks"), answer("Sure.")))
    shown, prompt = evaluate.sample_prompt(templated, first)
    assert shown == "thanks"
    assert prompt.endswith("<|im_start|>assistant\n")
    shown, prompt = evaluate.sample_prompt(templated, Row(1, rows.MESSAGES, chat(answer("Welcome."))))
    assert shown
    assert shown in prompt
