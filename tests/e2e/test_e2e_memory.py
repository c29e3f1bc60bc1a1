"""Memory from the command line: a plan before the run, the measured peak after it, the next plan corrected by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.e2e.conftest import Shell
from tests.engine import shapes

CARDS = [  # each with the smallest common card that holds its least plan
    (shapes.LLAMA_8B, "load_in_4bit=true", 8),
    (shapes.LLAMA_8B, "training_type=lora", 20),
    (shapes.LLAMA_8B, "training_type=full", 141),
    (shapes.QWEN_7B, "load_in_4bit=true", 8),
    (shapes.QWEN_7B, "training_type=lora", 20),
    (shapes.QWEN_7B, "training_type=full", 141),
]
LEAST = ("seq_len=512", "gradient_checkpointing=full", "lora_rank=16")


def options(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def planning(folder: Path, config: dict[str, Any], *settings: str) -> list[str]:
    (folder / "config.json").write_text(json.dumps(config))
    return ["submit", "finetune", "--model", str(folder), "--dry-run", *options(*LEAST, *settings)]


@pytest.mark.parametrize(("config", "settings", "card"), CARDS)
def test_a_config_alone_is_planned_for_any_card(
    shell: Shell, tmp_path: Path, config: dict[str, Any], settings: str, card: int
) -> None:
    plan = shell.json(*planning(tmp_path, config, settings), "--card", str(card))
    assert plan["fits"]
    assert plan["needed"] == sum(plan["parts"].values()) <= plan["free"] == plan["total"] == card * 10**9


def test_a_card_that_is_too_small_is_told_and_what_would_fit_it(shell: Shell, tmp_path: Path) -> None:
    text = shell.run(*planning(tmp_path, shapes.LLAMA_8B), "--card", "12", code=1).stdout
    assert "there are 12.0 GB (an NVIDIA card of 12 GB): too large" in text
    assert "weights" in text
    assert "load_in_4bit=true" in text
    text = shell.run(*planning(tmp_path, shapes.LLAMA_8B), "--card", "2", code=1)
    assert "No setting makes it fit" in text.stderr


def test_a_run_is_planned_measured_and_corrects_the_next_plan(shell: Shell, tiny_model: Path, tmp_path: Path) -> None:
    shell.run("models", "add", str(tiny_model), "--name", "tiny")
    shell.run("datasets", "add", str(tiny.make_rows(tmp_path / "sums.jsonl")), "--name", "sums")
    asked = ["submit", "finetune", "--model", "tiny", "--dataset", "sums"]
    small = options("steps=3", "seq_len=64")
    before = shell.run(*asked, *small, "--dry-run").stdout
    assert "free: fits" in before or "free: tight" in before
    assert "corrected" not in before

    job = shell.json(*asked, *small, "--wait")
    result = shell.json("result", job["id"])
    measured = result["memory_measured_bytes"]
    assert result["memory_planned_bytes"] == job["plan"]["needed"]
    # Torch and transformers alone take more than 200 MB, the tiny model next to nothing.
    assert 200e6 < measured < 3e9
    for command in ("show", "result"):
        assert " at its peak, " in shell.run(command, job["id"]).stdout
    assert [event["payload"]["peak_bytes"] for event in shell.json("events", job["id"]) if event["kind"] == "memory"]

    after = shell.json(*asked, *small, "--dry-run")
    assert after["runs"] == 1
    assert after["needed"] == round(after["planned"] * min(max(measured / after["planned"], 0.5), 2.0))
    assert "from 1 run here" in shell.run(*asked, *small, "--dry-run").stdout


def test_a_dry_run_tells_what_is_wrong_and_submits_nothing(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    jobs = shell.json("jobs")
    for arguments, code, said in (
        (["--model", "nonesuch"], 1, "No model is called 'nonesuch'"),
        (["--model", "starter", "--dataset", "nonesuch"], 1, "No dataset is called 'nonesuch'"),
        (["--model", str(tmp_path)], 1, "model_type 'mamba' cannot be planned yet"),
        (["--model", "starter", "--set", "steps=0"], 2, "steps"),
        (["--model", "starter", "--card", "0"], 2, "--card"),
    ):
        assert said in shell.run("submit", "finetune", *arguments, "--dry-run", code=code).stderr
    wrong = shell.run("submit", "finetune", "--model", "starter", "--dataset", "starter", "--card", "24", code=2)
    assert "--card: goes with --dry-run" in wrong.stderr
    assert shell.json("jobs") == jobs
