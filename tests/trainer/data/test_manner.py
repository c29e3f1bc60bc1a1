"""The manner in which rows are read: a system prompt before them, the last answer alone, the last rows held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trl

from engine.data import rows
from engine.data.rows import Row, RowError
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.trainer import evaluate
from engine.trainer.data import corpora, sources, token_cache
from engine.trainer.data.batch import IGNORED
from engine.trainer.data.corpora import CHATML, Corpus, Source
from engine.trainer.data.render import PLAIN, Manner, Renderer
from tests import tiny
from tests.trainer.conftest import write_rows

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
LAST = Manner(last_answer=True)
SYSTEM = {"role": "system", "content": "Own words."}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


LONG = [user("one?"), answer("First."), user("two?"), answer("Second."), user("three?"), answer("3")]


@pytest.fixture(params=["with markers", "without", "qwen3", "gemma3", "llama3"])
def templated(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    ours = {"with markers": tiny.TEMPLATE, "without": CHATML}
    template = ours.get(request.param) or (TEMPLATES / f"{request.param}.jinja").read_text()
    tokenizer.chat_template = template
    tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


def load(source: sources.AnySource, tokenizer: Any, **hyperparams: Any) -> Corpus:
    return corpora.load(source, tokenizer, FinetuneHyperparams.model_validate({"seq_len": 512, **hyperparams}))


def trained(tokenizer: Any, corpus: Corpus) -> list[str]:
    """Return what is trained of each row of the training part, as text."""
    found = [document for each in corpus.training for document in each]
    return [tokenizer.decode([label for label in one.labels if label != IGNORED]) for one in found]


# The last answer ---------------------------------------------------------------------------------------------------


def test_of_a_conversation_the_last_answer_alone_is_trained(templated: Any) -> None:
    row = Row(1, rows.MESSAGES, {"messages": LONG})
    every, last = Renderer(templated).render(row), Renderer(templated, LAST).render(row)
    assert (every.text, every.fault, last.fault) == (last.text, "", "")
    assert len(every.spans) == 3
    assert last.spans == every.spans[-1:]
    said = last.text[slice(*last.spans[0])]
    assert "3" in said  # with an empty thought, or an end of turn, where the template writes one
    assert not any(other in said for other in ("First", "Second", "?"))


def test_a_template_that_marks_parts_of_answers_gets_its_last_answer_found_by_its_place(tokenizer: Any) -> None:
    words = "{% for word in m.content.split(' ') %}{% generation %}{{ word }}{% endgeneration %} {% endfor %}"
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}" + words + "{% else %}{{ m.content }} "
        "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    row = Row(1, rows.MESSAGES, {"messages": [user("a"), answer("It is so."), user("b"), answer("Not at all.")]})
    assert len(Renderer(tokenizer).render(row).spans) == 6
    made = Renderer(tokenizer, LAST).render(row)
    assert [made.text[begin:end] for begin, end in made.spans] == ["Not at all."]


def test_a_prompt_that_opens_a_thought_leads_to_no_earlier_turn_than_the_last_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    said = [user("a?"), answer("<think>\nhm\n</think>\nA1"), user("SECRET QUESTION"), answer("A2")]
    row = Row(1, rows.MESSAGES, {"messages": said})
    every, last = Renderer(tokenizer).render(row), Renderer(tokenizer, LAST).render(row)
    assert [last.text[begin:end] for begin, end in last.spans] == ["A2<|im_end|>"]
    assert last.spans == every.spans[-1:]


def test_a_question_that_quotes_the_prompt_is_no_part_of_the_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    said = [user("Why is <|im_start|>assistant\n<think>\n there?"), answer("Because."), user("b"), answer("B")]
    made = Renderer(tokenizer).render(Row(1, rows.MESSAGES, {"messages": said}))
    assert [made.text[begin:end] for begin, end in made.spans] == ["Because.<|im_end|>", "B<|im_end|>"]


def test_rows_that_are_no_conversation_are_trained_as_ever(tokenizer: Any, tmp_path: Path) -> None:
    given = [{"text": "all of it"}, {"prompt": "two and two is ", "completion": "four"}] * 4
    source = Source(write_rows(tmp_path / "rows.jsonl", *given))
    assert load(source, tokenizer, loss_on="last_answer").training == load(source, tokenizer).training


def test_a_row_whose_last_answer_is_cut_off_has_nothing_to_train_on(tokenizer: Any, tmp_path: Path) -> None:
    long = {"messages": [user("a"), answer("First."), user("so " * 100), answer("Last.")]}
    source = Source(write_rows(tmp_path / "rows.jsonl", *[{"messages": LONG}] * 3, long))
    assert load(source, tokenizer, seq_len=96, packing=False).truncated_rows == 1
    with pytest.raises(RowError, match=r"^line 4: has no token to train on after truncation to seq_len"):
        load(source, tokenizer, seq_len=96, loss_on="last_answer")


# The system prompt -------------------------------------------------------------------------------------------------


def test_a_system_prompt_comes_before_conversations_that_have_none_of_their_own(tokenizer: Any, tmp_path: Path) -> None:
    given = [
        {"messages": [user("a"), answer("b")]},
        {"messages": [SYSTEM, user("a"), answer("b")]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "a", "output": "b"},
        {"prompt": "a ", "completion": "b"},
        {"text": "a b"},
    ]
    source = Source(write_rows(tmp_path / "rows.jsonl", *given))
    corpus = load(source, tokenizer, system_prompt="Be brief.", packing=False, val_split="last")
    said = {corpus.training.rows(n)[0]: tokenizer.decode(each[0].ids) for n, each in enumerate(corpus.training)}
    told = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert [said[row].startswith(told) for row in range(5)] == [True, False, True, True, False]
    assert said[1].startswith("<|im_start|>system\nOwn words.")
    assert "system" not in said[4]
    # What is trained is what was trained without it.
    assert trained(tokenizer, corpus) == trained(tokenizer, load(source, tokenizer, packing=False, val_split="last"))


def test_the_sample_is_asked_for_under_the_system_prompt(tokenizer: Any, tmp_path: Path) -> None:
    source = Source(tiny.make_rows(tmp_path / "sums.jsonl", 4))
    shown, prompt = evaluate.sample_prompt(tokenizer, load(source, tokenizer, system_prompt="Be.").validation_rows[0])
    assert prompt.startswith("<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\n")
    assert shown.startswith("What is")
    alone = Manner("Be.").row(Row(1, rows.MESSAGES, {"messages": [answer("Welcome.")]}))
    shown, prompt = evaluate.sample_prompt(tokenizer, alone)
    assert (shown, prompt.count("<|im_start|>")) == ("Hello.", 3)


def test_a_message_keeps_its_number_where_a_system_prompt_was_put_before_it(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{% endfor %}"
    for manner in (PLAIN, Manner("Be brief.")):
        fault = Renderer(tokenizer, manner).render(Row(1, rows.MESSAGES, {"messages": [user("a"), answer("b")]})).fault
        assert fault == "the chat template does not show what the assistant says in message 2"


def test_a_template_that_takes_no_system_message_says_so(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.TEMPLATE
    )
    source = Source(tiny.make_rows(tmp_path / "sums.jsonl", 4))
    load(source, tokenizer)
    with pytest.raises(RowError, match=r"refuses this conversation \(no system role\)"):
        load(source, tokenizer, system_prompt="Be brief.")


# What is held out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "fraction", "held"), [(10, 0.2, 2), (11, 0.5, 6), (2, 0.89, 1), (40, 0.001, 1)])
def test_with_val_split_last_exactly_the_last_rows_are_held_out(
    tokenizer: Any, tmp_path: Path, count: int, fraction: float, held: int
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *({"text": f"row number {n}"} for n in range(1, count + 1)))
    corpus = load(Source(path), tokenizer, val_fraction=fraction, val_split="last", seed=7)
    assert [row.line for row in corpus.validation_rows] == list(range(count - held + 1, count + 1))
    learned = sorted(row + 1 for n in range(len(corpus.training)) for row in corpus.training.rows(n))
    assert learned == list(range(1, count - held + 1))


def test_the_last_share_is_held_out_in_full_and_of_a_random_one_five_hundred_rows(
    tokenizer: Any, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *({"text": "a b"} for _ in range(3000)))
    for val_split, held in (("last", 600), ("random", 500)):
        corpus = load(Source(path), tokenizer, val_fraction=0.2, val_split=val_split)
        assert (len(corpus.validation_rows), corpus.training_rows) == (held, 3000 - held)


def test_a_bad_row_that_is_left_out_is_no_part_of_the_last_share(tokenizer: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *[{"text": "good"}] * 8, {"prompt": "a", "chosen": "b", "rejected": "c"})
    corpus = load(Source(path), tokenizer, val_fraction=0.25, val_split="last", drop_bad_rows=True)
    assert [row.line for row in corpus.validation_rows] == [7, 8]


# The cache ---------------------------------------------------------------------------------------------------------


def test_tokens_are_kept_for_each_manner_by_themselves(tokenizer: Any, tmp_path: Path) -> None:
    manners: list[dict[str, Any]] = [{}, {"loss_on": "last_answer"}, {"system_prompt": "Be."}, {"system_prompt": "B."}]
    path = write_rows(tmp_path / "rows.jsonl", *[{"messages": LONG}] * 4)
    kept = Source(path, "a" * 64, cache=tmp_path / "cache")
    first = [load(kept, tokenizer, **manner) for manner in manners]
    assert len(list((tmp_path / "cache").iterdir())) == len(manners)
    again = [load(kept, tokenizer, **manner) for manner in manners]
    fresh = [load(Source(path), tokenizer, **manner) for manner in manners]
    assert [each.training for each in again] == [each.training for each in first] == [each.training for each in fresh]
    assert len({json.dumps([one.labels for pack in each.training for one in pack]) for each in fresh}) == len(manners)


def test_tokens_that_were_kept_before_there_were_manners_are_still_found(tokenizer: Any) -> None:
    plain = token_cache.key(tokenizer, data_sha256="a", form="text")
    assert plain == token_cache.key(tokenizer, data_sha256="a", form="text", manner=Manner())
    others = {token_cache.key(tokenizer, data_sha256="a", form="text", manner=one) for one in (LAST, Manner("x"))}
    assert len({plain, *others}) == 3
