"""The contraction bench: everyone loses the same number of neurons, by the worth that its name says."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import contract
from tests import tiny


def mlp(gate: list[list[float]], up: list[list[float]], down: list[list[float]]) -> Any:
    parts = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    made = {name: torch.nn.Linear(1, 1, bias=False) for name in parts}
    for name, rows in parts.items():
        made[name].weight = torch.nn.Parameter(torch.tensor(rows))
    made["down_proj"].in_features = len(gate)
    return SimpleNamespace(**made)


def test_worth_by_weights_is_what_the_papers_call_so() -> None:
    one = mlp([[1.0, -2.0], [3.0, 0.0]], [[0.5, -0.5], [4.0, -3.0]], [[1.0, 2.0]])
    assert contract.maw(one).tolist() == [1 + 2 + 0.5 + 0.5, 3 + 0 + 4 + 3]
    assert contract.ppm(one).tolist() == pytest.approx([5**0.5 * 0.5**0.5 * 1, 3 * 5 * 2])
    left = contract.by(contract.maw, repair=False)(one, one.down_proj.weight, torch.eye(2), 1)
    assert left.kept.tolist() == [1]
    assert left.down.tolist() == [[2.0]]


@pytest.mark.slow
def test_a_round_gives_every_contestant_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(contract, "JUDGED_ROWS", 4)
    text = tmp_path / "text"
    text.write_text("What is the sum of one and two? " * 20)
    asked = argparse.Namespace(
        model=str(tiny.make_model(tmp_path / "model")),
        ratios=[50.0],
        sequences=15,
        seq_len=32,
        own=tmp_path / "own.json",
        text=text,
        heal=1,
        heal_batch=1,
        only=["ours", "maw", "healed"],
    )
    found = contract.compare(asked, tmp_path)
    assert [row["key"] for row in found["rows"]] == ["ours", "maw", "healed"]
    for row in [found["dense"], *found["rows"]]:
        assert row["rows"] > 1
        assert row["text"] > 1
    assert found["own"]["tokens"] == found["own"]["sequences"] * 32
    assert asked.own.exists()
    contract.show(found)
