"""Datasets from the command line: imports of every kind, the mask view, and bad rows named, as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.e2e.conftest import Shell

PICKY = "{% if '7 plus' in messages[0].content %}{{ raise_exception('no sevens') }}{% endif %}" + tiny.TEMPLATE


@pytest.fixture(scope="module")
def stocked(shell: Shell, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell with a tiny model, one whose template refuses some rows, and a dataset."""
    folder = tmp_path_factory.mktemp("stock")
    picky = folder / "picky"
    picky.mkdir()
    for file in tiny_model.iterdir():
        (picky / file.name).write_bytes(file.read_bytes())
    (picky / "chat_template.jinja").write_text(PICKY)
    shell.run("models", "add", str(tiny_model), "--name", "tiny")
    shell.run("models", "add", str(picky), "--name", "picky")
    shell.run("datasets", "add", str(tiny.make_rows(folder / "sums.jsonl", 30)), "--name", "sums")
    return shell


def test_inspect_prints_which_tokens_are_trained_with_signs_alone_where_there_is_no_colour(stocked: Shell) -> None:
    shown = stocked.run("datasets", "inspect", "sums", "--model", "tiny", "--seq-len", "128").stdout
    assert "30 of messages: 28 to train on, 2 held out" in shown
    assert "row length in tokens" in shown
    assert "truncated  0 rows (0.0%) longer than seq_len 128" in shown
    lines = shown.splitlines()
    first = lines.index(next(line for line in lines if line.startswith("── line")))
    assert lines[first + 1] == "· <|im_start|>user↵"
    assert all(line[:2] in ("· ", "+ ", "~ ", "──") for line in lines[first:])
    assert any(line.startswith("+ The sum of") and line.endswith("<|im_end|>") for line in lines[first:])
    assert "\x1b" not in shown


def test_a_row_that_the_template_refuses_is_named_and_the_exit_code_says_so(stocked: Shell) -> None:
    done = stocked.run("datasets", "inspect", "sums", "--model", "picky", code=1)
    # The rows about 7 and about 17 and 27.
    assert "would stop: line 8: the chat template refuses this conversation (no sevens)" in done.stderr
    assert "3 rows, line 8, line 18, line 28: the chat template refuses" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("table.csv", "prompt,completion\na,b\nc,d\n", "2 rows of prompt_completion"),
        ("list.json", json.dumps([{"instruction": "a", "output": "b"}] * 3), "3 rows of alpaca"),
        ("book.txt", "A paragraph.\n\nAnother one.\n", "1 row of text"),
    ],
)
def test_files_of_every_kind_are_added_and_their_format_said(
    stocked: Shell, tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    assert said in stocked.run("datasets", "add", str(tmp_path / name), "--name", "kind").stderr


def test_bad_rows_are_dropped_when_asked_and_each_is_named(stocked: Shell, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("text,id\nfine,1\nragged\n,3\n")
    refused = stocked.run("datasets", "add", str(tmp_path / "some.csv"), "--name", "some", code=1).stderr
    assert 'some.csv line 3: has 1 cell, the header has 2; some.csv line 4: "text" is empty' in refused
    added = stocked.run("datasets", "add", str(tmp_path / "some.csv"), "--name", "some", "--drop-bad").stderr
    assert "Left out 2 bad rows: some.csv line 3: has 1 cell" in added
    wrong = stocked.run("datasets", "add", str(tmp_path / "some.csv"), "--name", "x", "--format", "dpo", code=1).stderr
    assert 'some.csv line 2: lacks "prompt", which the format dpo needs' in wrong


def test_a_hub_dataset_is_found_in_the_local_cache(stocked: Shell, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "datasets--lab--rows" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    tiny.make_rows(snapshot / "train.jsonl", 4)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    environment = {**stocked.environment, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "fusion_tui.cli", "datasets", "add", "lab/rows", "--name", "fromhub"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 rows of messages" in done.stderr


def test_a_finetune_on_rows_that_compare_answers_is_refused_with_the_remedy(stocked: Shell, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3)
    stocked.run("datasets", "add", str(tmp_path / "pairs.jsonl"), "--name", "pairs")
    said = stocked.run("submit", "finetune", "--model", "tiny", "--dataset", "pairs", code=2).stderr
    assert "the dataset pairs has dpo rows, from which a fine-tune cannot learn" in said


def test_a_run_may_drop_what_its_template_refuses_and_counts_it_in_the_result(stocked: Shell) -> None:
    asked = ["submit", "finetune", "--model", "picky", "--dataset", "sums", "--set", "steps=2", "--set", "seq_len=64"]
    stocked.json(*asked, "--name", "lenient", "--set", "drop_bad_rows=true")
    stocked.run("watch", "lenient")
    result = stocked.json("result", "lenient")
    assert (result["dropped_rows"], result["rows_trained"] + result["rows_held_out"]) == (3, 27)
    assert "3 rows are left out: lines 8, 18, 28: the chat template refuses" in stocked.run("logs", "lenient").stdout
    assert [folder.name for folder in (stocked.home / "cache").iterdir()] != []
