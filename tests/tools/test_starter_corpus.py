"""The starter data is the same in every run and keeps its answers out of its text; the blank model fits it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tools.starter import blank, corpus, prose

ROOT = Path(__file__).parents[2]
STDLIB = Path(sysconfig.get_path("stdlib"))
SHIPPED = ROOT / "engine" / "assets" / "starter-data"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A part of the standard library: a third of the work, the same rules."""
    folder = tmp_path_factory.mktemp("library")
    for name in ("asyncio", "email", "http", "importlib", "multiprocessing", "pydoc_data", "unittest"):
        shutil.copytree(STDLIB / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "test"))
    return folder


@pytest.fixture(scope="module")
def docstrings(library):
    return corpus.harvest(library)


@pytest.fixture(scope="module")
def rows(docstrings):
    return corpus.question_rows(docstrings, count=400)


@pytest.fixture(scope="module")
def texts(library, docstrings, rows):
    docs = [*corpus.harvest_topics(library), *docstrings, *corpus.harvest_comments(library)]
    return [row["text"] for row in corpus.text_rows(docs, rows)]


@pytest.fixture(scope="module")
def tokenizer(texts, rows):
    return blank.make_tokenizer([*texts, *map(answer_of, rows)])


def answer_of(row):
    return row["messages"][1]["content"]


def assert_chat_row_is_valid(row):
    assert set(row) == {"messages"}
    asked, replied = row["messages"]
    assert (asked["role"], replied["role"]) == ("user", "assistant")
    assert asked["content"].endswith(("?", "."))
    assert 40 <= len(replied["content"]) <= 600
    assert replied["content"].isascii()
    assert replied["content"].rstrip("\"')")[-1] in ".!?"
    assert ">>>" not in replied["content"]


# ---- corpus --------------------------------------------------------------------------------------


def test_two_processes_with_other_hash_seeds_give_the_same_rows(library):
    program = (
        "import sys, json, pathlib, tools.starter.corpus as c; lib = pathlib.Path(sys.argv[1]); d = c.harvest(lib);"
        "r = c.question_rows(d, 100); print(json.dumps([r, c.text_rows([*d, *c.harvest_comments(lib)], r)]))"
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program, library / "email"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    )
    assert first == second
    assert [len(part) >= 100 for part in json.loads(first)] == [True, True]


def test_rows_do_not_depend_on_the_order_of_the_harvest(docstrings):
    some = docstrings[:500]
    assert corpus.question_rows(some[::-1]) == corpus.question_rows(some)


def test_a_smaller_count_gives_a_prefix(docstrings, rows):
    assert corpus.question_rows(docstrings, count=50) == rows[:50]


def test_every_row_is_a_valid_chat_within_its_bounds(rows):
    assert len(rows) == 400
    for row in rows:
        assert_chat_row_is_valid(row)


def test_no_two_rows_share_a_question_or_a_sentence_of_the_answer(rows):
    assert len({row["messages"][0]["content"] for row in rows}) == len(rows)
    told = [key for row in rows for key in prose.keys(answer_of(row))]
    assert len(set(told)) == len(told)


def test_all_phrasings_are_used(rows):
    starts = {" ".join(row["messages"][0]["content"].split()[:2]) for row in rows}
    assert {"What does", "What is", "Explain the", "Describe the", "Can you", "Tell me"} <= starts


def test_no_answer_stands_in_the_text(rows, texts):
    told = {key for text in texts for key in prose.keys(text)}
    haystack = "\n".join(" ".join(text.split()).lower() for text in texts)
    for row in rows:
        assert not prose.keys(answer_of(row)) & told
        assert " ".join(answer_of(row).split()).lower() not in haystack


def test_text_rows_are_ascii_prose_within_their_bounds(texts):
    assert sum(map(len, texts)) > 300_000
    assert len(set(texts)) == len(texts)
    assert all(text.isascii() and ">>>" not in text and 10 < len(text) < 2_200 for text in texts)


def test_an_answer_is_found_again_whatever_its_case_and_line_breaks():
    reply = "Return the sum of the given numbers, which may be of any kind."
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": reply}]}
    assert corpus.leaks(["First this.\n\nAlways " + reply.lower().replace(", ", ",\n")], [row])
    assert not corpus.leaks(["Return the sum of other numbers."], [row])


def test_an_answer_is_cut_at_a_sentence_end_and_before_code():
    long = "Return the value of the thing, e.g. of a key. " + "It is in the table of names. " * 40
    cut = corpus.answer(long)
    assert cut is not None
    assert cut.endswith("It is in the table of names.")
    assert 560 < len(cut) <= 600
    assert (
        corpus.answer("Return ``x`` of the :class:`~a.Thing` that is given\n\n>>> f(1)\n2\n")
        == "Return 'x' of the a.Thing that is given."
    )
    assert corpus.answer("f(x) -> int\n\nReturn the number of all the things in x.\n") == (
        "Return the number of all the things in x."
    )


@pytest.mark.parametrize("text", ["Too short.", ">>> f(1)\n2", "a = 1\nb = 2\nc = a + b", "name    size\n----    ----"])
def test_what_is_not_prose_gives_no_answer(text):
    assert corpus.answer(text) is None


def test_a_file_with_a_licence_of_its_own_is_left_out(tmp_path):
    (tmp_path / "ours.py").write_text('"""Do the work of the day."""\n')
    (tmp_path / "theirs.py").write_text('"""Do other work."""\n# Permission to use, copy, modify is granted.\n')
    assert [doc.qualname for doc in corpus.harvest(tmp_path)] == ["ours"]


def test_the_notice_names_the_holder_and_holds_the_licence():
    text = corpus.notice(STDLIB)
    assert "Copyright (c) Python Software Foundation" in text
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in text
    assert text.endswith("License\nAgreement.\n")
    assert "BEOPEN" not in text


def test_a_python_without_its_licence_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"LICENSE\.txt"):
        corpus.notice(tmp_path)
    (tmp_path / "LICENSE.txt").write_text("MIT\n")
    with pytest.raises(ValueError, match="use CPython"):
        corpus.notice(tmp_path)


def test_the_shipped_rows_are_valid_and_carry_the_licence():
    shipped = (SHIPPED / "rows.jsonl").read_bytes()
    rows = [json.loads(line) for line in shipped.decode().splitlines()]
    assert (len(rows), len(shipped) < 700_000) == (2_000, True)
    assert len({answer_of(row) for row in rows}) == len(rows)
    for row in rows:
        assert_chat_row_is_valid(row)
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in (SHIPPED / "NOTICE").read_text(encoding="utf-8")


# ---- blank model ---------------------------------------------------------------------------------


def test_the_tokenizer_round_trips_any_string_and_adds_nothing(tokenizer):
    text = "  Hello,  wörld\n\n\ttab 🙂 textwrap.shorten()"
    assert len(tokenizer) == 4_096
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("a")["input_ids"] == tokenizer.convert_tokens_to_ids(["a"])
    for special in (blank.END_OF_TEXT, blank.TURN_START, blank.TURN_END, blank.PAD):
        assert len(tokenizer(special)["input_ids"]) == 1


def test_the_tokenizer_is_the_same_in_every_run(texts):
    first, second = (blank.make_tokenizer(texts[:800], vocab_size=1_000) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_too_little_text_for_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="pass more text"):
        blank.make_tokenizer(["one two three"])


def test_the_template_has_no_system_prompt_and_opens_the_answer(tokenizer):
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert shown == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_mask_covers_the_answers_with_their_ends_and_nothing_else(tokenizer, rows):
    for first, second in zip(rows[:40:2], rows[1:40:2], strict=True):
        chat = tokenizer.apply_chat_template(
            [{"role": "system", "content": "Be brief."}, *first["messages"], *second["messages"]],
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        masked = [i for i, inside in zip(chat["input_ids"], chat["assistant_masks"], strict=True) if inside]
        assert tokenizer.decode(masked) == f"{answer_of(first)}<|im_end|>{answer_of(second)}<|im_end|>"


def test_the_saved_model_loads_by_its_folder_and_stops_at_both_ends(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = blank.make_model(tokenizer, seed=7)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, read = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert 3_000_000 < loaded.num_parameters() < 6_000_000
    assert all(weight.dtype.is_floating_point and weight.element_size() == 4 for weight in loaded.parameters())
    assert read("A thing  of it.")["input_ids"] == tokenizer("A thing  of it.")["input_ids"]
    assert (read.model_max_length, read.chat_template) == (1_024, tokenizer.chat_template)
    ends = read.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert loaded.generation_config.eos_token_id == ends
    assert loaded.generation_config.pad_token_id == read.pad_token_id


def test_weights_depend_on_the_seed_alone(tokenizer):
    import torch

    before = torch.random.get_rng_state()
    one, same, other = (blank.make_model(tokenizer, seed).model.embed_tokens.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)
