"""The train job: the model grows in silence, what is new learns, and whatever kills it, the same model comes out."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from engine.journal import JournalWriter
from engine.trainer import train
from engine.trainer.reporter import Reporter
from engine.trainer.run import StopFlag
from tests import worker
from tests.trainer.conftest import Bench

Benches = Callable[[str], Bench]


def carry_out(bench: Bench, **hyperparams: Any) -> dict[str, Any]:
    """Carry out a train order in this process; return its result."""
    order = bench.order(type="train", **hyperparams)
    train.run_job(order, Reporter(JournalWriter(bench.journal_path(), order.fence)), StopFlag())
    result: dict[str, Any] = json.loads((output(bench) / "training.json").read_text())["result"]
    return result


def output(bench: Bench) -> Path:
    return bench.folder / "models" / "out-id"


def sealed(bench: Bench) -> str:
    return hashlib.sha256((output(bench) / "model.safetensors").read_bytes()).hexdigest()


def points(bench: Bench, phase: str) -> list[dict[str, Any]]:
    told = [record.data for record in bench.records() if record.kind == "point"]
    return [point for point in told if point["phase"] == phase]


@pytest.mark.parametrize(
    ("shape", "blocks", "neurons"), [("depth", 2, 0), ("width", 0, 64), ("auto", 1, 64)], ids=["depth", "width", "auto"]
)
def test_a_grown_model_is_what_was_planned_and_loads_with_stock_transformers(
    bench: Bench, shape: str, blocks: int, neurons: int
) -> None:
    ratio = {"depth": 0.67, "width": 0.45, "auto": 1.0}[shape]
    result = carry_out(bench, growth_shape=shape, growth_ratio=ratio)
    assert (result["blocks_added"], result["neurons_added"]) == (blocks, neurons)
    stock = transformers.AutoModelForCausalLM.from_pretrained(output(bench))
    assert stock.config.num_hidden_layers == 2 + blocks
    assert stock.config.intermediate_size == 64 + neurons
    assert stock.num_parameters() == result["params_after"] == result["params_before"] + result["params_delta"]
    # A layer of 9,280 and 96 for each neuron of each layer, by hand.
    assert result["params_delta"] == blocks * 9_280 + neurons * 96 * (2 + blocks)
    assert result["function_preservation"] == (0 if shape == "depth" else pytest.approx(0, abs=1e-5))
    assert result["argmax_agreement"] == 1.0
    assert result["ppl_after_growth"] == pytest.approx(result["ppl_baseline"], rel=1e-4)
    assert result["ppl_final"] < 0.95 * result["ppl_baseline"]
    assert result["ppl_delta_pct"] == pytest.approx(100 * (result["ppl_final"] / result["ppl_baseline"] - 1))


def test_the_old_weights_are_in_the_grown_model_bit_for_bit(bench: Bench, tiny_model: Path) -> None:
    carry_out(bench, growth_shape="depth", growth_ratio=0.3)
    made = load_file(output(bench) / "model.safetensors")
    facts = next(record.data["payload"] for record in bench.records() if record.data.get("kind") == "diagnose")
    (behind,) = facts["blocks"]
    for name, old in load_file(tiny_model / "model.safetensors").items():
        parts = name.split(".")
        if parts[1] == "layers" and int(parts[2]) > behind:
            parts[2] = str(int(parts[2]) + 1)
        assert torch.equal(made[".".join(parts)], old.to(made[".".join(parts)].dtype)), name


def test_cycles_are_told_evaluated_and_saved_and_tokens_count_as_the_dialect_counts_them(bench: Bench) -> None:
    result = carry_out(bench, turns=2, cycles=2, steps_per_cycle=3, seq_len=64)
    assert result["tokens_processed"] == 2 * 2 * 3 * 64
    assert 0 < result["tokens_trained"] <= result["tokens_processed"]
    assert [point["cycle"] for point in points(bench, "train")] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    judged = [(point["step"], point.get("cycle")) for point in points(bench, "eval")]
    assert judged == [(0, None), (3, 1), (6, 2), (9, 3), (12, 4)]
    saved = [record.data["step"] for record in bench.records() if record.kind == "checkpoint"]
    assert saved == [3, 6, 9, 12]
    cycles = [r.data["payload"] for r in bench.records() if r.kind == "event" and r.data["kind"] == "cycle"]
    assert [(cycle["turn"], cycle["cycle"]) for cycle in cycles] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_the_diagnosis_is_told_layer_by_layer_with_its_reason(bench: Bench) -> None:
    carry_out(bench)
    records = bench.records()
    facts = next(record.data["payload"] for record in records if record.data.get("kind") == "diagnose")
    assert [layer["layer"] for layer in facts["layers"]] == [0, 1]
    assert all({"influence", "gradient", "utilisation", "score"} <= layer.keys() for layer in facts["layers"])
    lines = [record.data["text"] for record in records if record.kind == "log"]
    assert any(line.startswith("Grows by 1 new layer behind layer") for line in lines)
    assert any(line.startswith("Growth moved the logits by 0.0e+00") for line in lines)


def test_held_ever_harder_the_model_stays_ever_nearer_to_the_original(make_bench: Benches) -> None:
    settings = {"cycles": 1, "steps_per_cycle": 30, "growth_shape": "depth", "growth_ratio": 0.3}
    forgot = []
    for weight in (0.0, 50.0):
        result = carry_out(make_bench(f"held-{weight:g}"), retain_weight=weight, **settings)
        forgot.append(result["self_ppl_final"] / result["self_ppl_baseline"] - 1)
    # Weights at random have little to forget; the divergence itself falls to a fifth.
    assert forgot[0] > 0.003
    assert forgot[1] < 0.8 * forgot[0]


def test_every_weight_learns_where_asked_the_old_ones_a_tenth_as_fast(bench: Bench, tiny_model: Path) -> None:
    result = carry_out(bench, train_scope="all", growth_shape="depth", growth_ratio=0.3, lr=1e-3)
    assert result["ppl_final"] < result["ppl_baseline"]
    made = load_file(output(bench) / "model.safetensors")["model.embed_tokens.weight"].float()
    moved = (made - load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"].float()).abs().max()
    # Adam moves a weight by about its rate a step: 8 steps of at most 1e-4.
    assert 1e-5 < float(moved) < 1.2e-3


def test_on_a_base_in_4_bits_the_new_weights_are_put_onto_the_stored_ones(bench: Bench, tiny_model: Path) -> None:
    result = carry_out(bench, load_in_4bit=True, growth_shape="auto", growth_ratio=1.0)
    assert result["params_before"] == 27_712
    assert result["ppl_final"] < result["ppl_baseline"]
    made = load_file(output(bench) / "model.safetensors")
    old = load_file(tiny_model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(made["model.layers.0.self_attn.q_proj.weight"], old.to(torch.float16))
    transformers.AutoModelForCausalLM.from_pretrained(output(bench))


def test_the_ungrown_model_is_trained_on_the_same_rows_for_comparison(bench: Bench) -> None:
    result = carry_out(bench, compare_ungrown=True)
    assert result["ungrown_training_type"] == "full"
    assert result["ungrown_ppl_final"] < result["ppl_baseline"]
    assert len(points(bench, "ungrown")) == len(points(bench, "train")) == 8
    assert [record.data["step"] for record in bench.records() if record.kind == "resume"] == [0]


DEATHS = [
    "of 40 sequences",
    "comparison without growth: step 3 of 8",
    '"kind": "diagnose"',
    "growing",
    "evaluating the grown model",
    '"step": 3, "phase": "train"',
    "saving step 4",
    "evaluating on the original's own text",
    "putting the new weights",
    "writing the finished model",
]


def test_killed_in_every_phase_it_ends_with_the_model_of_a_run_left_alone(make_bench: Benches) -> None:
    settings = {"compare_ungrown": True, "save_steps": 2}
    calm, killed = make_bench("calm"), make_bench("killed")
    undisturbed = begin(calm, **settings)
    for words in DEATHS:
        process = begin(killed, dying_at=words, **settings)
        process.join()
        assert process.exitcode == -signal.SIGKILL, words
    last = begin(killed, **settings)
    for process in (last, undisturbed):
        process.join()
        assert process.exitcode == 0
    assert sealed(killed) == sealed(calm)
    # What was done was not done again.
    told = [record.data.get("text", "") for record in killed.records()]
    assert not any("writes text" in text or "diagnosing" in text for text in told)


def begin(bench: Bench, dying_at: str = "", **hyperparams: Any) -> Any:
    order = bench.order(type="train", **hyperparams)
    return worker.start(bench.folder / f"attempt-{order.fence}", order, dying_at=dying_at)
