"""What a finished job leaves: adapter, merged model, card and result, whole, or nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import manifest
from engine.errors import NoSpace
from engine.journal import JournalWriter
from engine.paths import Home
from engine.trainer import evaluate, finetune, lora, models
from engine.trainer.publish import staged_for
from engine.trainer.reporter import Reporter
from engine.trainer.run import StopFlag
from tests import tiny
from tests.trainer.conftest import Bench


def carry_out(bench: Bench, **hyperparams: Any) -> None:
    """Do a whole job, from order to published model."""
    order = bench.order(**hyperparams)
    finetune.run_job(order, Reporter(JournalWriter(bench.journal_path(), order.fence)), StopFlag())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    """A LoRA job carried out from order to published model."""
    folder = tmp_path_factory.mktemp("finished")
    bench = Bench(folder / "job", tiny_model, tiny.make_rows(folder / "sums.jsonl", 24))
    carry_out(bench, steps=12, lr=2e-2)
    return bench


def output(bench: Bench) -> Path:
    return bench.folder / "models" / "out-id"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 200).reshape(1, -1)
    return model.eval()(input_ids=ids).logits


def test_the_merged_model_is_the_adapter_on_its_base(finished: Bench) -> None:
    load = AutoModelForCausalLM.from_pretrained
    merged = load(output(finished), dtype=torch.float32)
    base = load(finished.model_path, dtype=torch.float32)
    plain = logits_of(base)
    adapted = PeftModel.from_pretrained(base, output(finished) / "adapter")
    wanted = logits_of(adapted)
    # What was learnt is a hundred times what rounding to 16 bits may cost.
    assert (plain - wanted).abs().max() > 1e-1
    exact = logits_of(adapted.merge_and_unload().to(torch.float16).to(torch.float32))
    assert (logits_of(merged) - exact).abs().max() < 1e-3
    assert (logits_of(merged) - wanted).abs().mean() < 1e-2


def test_the_published_model_loads_with_stock_tools_and_ends_its_turn(finished: Bench) -> None:
    folder = output(finished)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float16
    assert tokenizer.chat_template
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert {end, tokenizer.eos_token_id} <= set(model.generation_config.eos_token_id)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], return_tensors="pt", return_dict=True)
    assert model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]
    assert not list(folder.rglob("*.bin"))
    assert not list(folder.rglob("*.pt"))


def test_a_model_that_goes_beyond_the_range_of_fp16_is_published_in_bf16(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert models.sixteen_bits(model, [5, 6, 7], torch.device("cpu")) == torch.float16
    with torch.no_grad():
        # Weights that fit, with activations that do not.
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(3e4)
            layer.mlp.gate_proj.weight.mul_(3e4)
    assert max(float(parameter.abs().max()) for parameter in model.parameters()) < 30_000
    assert models.sixteen_bits(model, [5, 6, 7], torch.device("cpu")) == torch.bfloat16


def test_what_is_published_is_sealed_and_nothing_staged_is_left(finished: Bench) -> None:
    found = manifest.verify(output(finished))
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training.json"} <= found.files.keys()
    assert "adapter/adapter_model.safetensors" in found.files
    assert [path.name for path in output(finished).parent.iterdir()] == ["out-id"]


def test_the_job_tells_its_whole_life_and_its_result_adds_up(finished: Bench) -> None:
    told = finished.records()
    states = [record.data["to"] for record in told if record.kind == "state"]
    assert states[0] == "staging"
    assert states[-1] == "uploading"
    assert "running" in states
    (result,) = [record.data for record in told if record.kind == "result"]
    (model,) = [record.data for record in told if record.kind == "model"]
    assert result["params_before"] == result["params_after"] == model["params"]
    assert result["params_delta"] == 0
    assert result["ppl_final"] < result["ppl_baseline"]
    change = 100 * (result["ppl_final"] - result["ppl_baseline"]) / result["ppl_baseline"]
    assert result["ppl_delta_pct"] == pytest.approx(change)
    assert result["loss_final"] == finished.losses()[12][0]
    assert (result["rows_trained"], result["rows_held_out"], result["truncated_rows"]) == (23, 1, 0)
    assert {"sample_prompt", "sample_before", "sample_after"} <= result.keys()
    card = json.loads((output(finished) / "training.json").read_text())
    assert card["result"] == {**result, "sample_after": result["sample_after"]}
    points = [record.data for record in told if record.kind == "point" and record.data["phase"] == "train"]
    assert result["tokens_processed"] == points[-1]["tokens"]
    assert [point["tokens"] for point in points] == sorted(point["tokens"] for point in points)


def test_a_model_that_does_not_fit_on_the_disk_is_not_begun(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(bench.rows.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoSpace, match=r"checkpoint of step 1|model out"):
        carry_out(bench, steps=1)
    assert not output(bench).exists()


def test_a_model_that_gives_no_numbers_is_not_called_fit_for_fp16(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert models.sixteen_bits(model, [5, 6, 7], torch.device("cpu")) == torch.bfloat16


def test_what_4_bits_lost_is_not_in_the_merged_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    adapt, merge = lora.add_adapters, lora.merge

    def kept(*arguments: Any) -> Any:
        trained.append(adapt(*arguments))
        return trained[-1]

    def released(*arguments: Any) -> Any:
        # Two models at once would take the memory that 4 bits were chosen to save.
        assert sum(parameter.numel() for parameter in trained[-1].parameters()) == 0
        return merge(*arguments)

    monkeypatch.setattr(lora, "add_adapters", kept)
    monkeypatch.setattr(lora, "merge", released)
    carry_out(bench, steps=6, lr=2e-2, load_in_4bit=True)
    assert len(trained) == 1

    base, merged = weights_of(bench.model_path), weights_of(output(bench))
    adapter = load_file(output(bench) / "adapter" / "adapter_model.safetensors")
    config = json.loads((output(bench) / "adapter" / "adapter_config.json").read_text())
    in_4_bits = models.load_4bit(bench.model_path, torch.float32, torch.device("cpu"))
    adapted = [name for name in base if f"base_model.model.{name.removesuffix('weight')}lora_A.weight" in adapter]
    assert len(adapted) == 14
    for name in adapted:
        path = f"base_model.model.{name.removesuffix('weight')}"
        delta = adapter[f"{path}lora_B.weight"] @ adapter[f"{path}lora_A.weight"] * config["lora_alpha"] / config["r"]
        off = (merged[name] - base[name] - delta).abs().max()
        layer = in_4_bits.get_submodule(name.removesuffix(".weight"))
        from bitsandbytes.functional import dequantize_4bit

        lost = dequantize_4bit(layer.weight.data, layer.weight.quant_state).view_as(base[name]) - base[name]
        # Half a step of fp16 at the largest weight, and no more; 4 bits lose a hundred times that.
        assert off <= float((base[name] + delta).abs().max()) * 2**-11
        assert lost.abs().max() > 20 * off
    for name in base.keys() - set(adapted):
        assert torch.equal(merged[name], base[name].half().float())


def test_a_fully_trained_model_is_published_without_an_adapter_and_runs_anywhere(bench: Bench) -> None:
    carry_out(bench, steps=3, training_type="full", gradient_checkpointing="full", optimizer="adamw_8bit")
    folder = output(bench)
    assert not (folder / "adapter").exists()
    # Nothing of how it was trained is left in how it is run.
    config = (folder / "config.json").read_text()
    assert "documents" not in config
    assert "quantization" not in config
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config._attn_implementation == "sdpa"
    assert torch.isfinite(logits_of(model)).all()
    before, after = weights_of(bench.model_path), weights_of(folder)
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name].half().float())]
    assert len(changed) > 14
    assert "adapter" not in (folder / "README.md").read_text()


def test_card_and_record_say_what_was_trained_on_what_and_how(finished: Bench) -> None:
    record = json.loads((output(finished) / "training.json").read_text())
    assert record["hyperparams"]["steps"] == 12
    assert record["hyperparams"]["optimizer"] == "adamw"
    assert record["dataset_sha256"] == "0" * 64
    assert {"torch", "transformers", "peft"} <= record["versions"].keys()
    told = [r.data for r in finished.records() if r.kind == "point" and r.data["phase"] == "eval"]
    assert record["curve"] == [[point["step"], point["loss"]] for point in told]
    assert record["curve"][0][0] == 0
    assert record["curve"][-1][0] == 12
    card = (output(finished) / "README.md").read_text()
    result = record["result"]
    for fact in (
        "tiny",
        "0" * 64,
        f"{result['ppl_baseline']:.3f} before, {result['ppl_final']:.3f} after",
        "| lora_rank | 4 |",
        "| seq_len | 96 |",
        f"torch {record['versions']['torch']}",
        f"| 12 | {record['curve'][-1][1]:.4f} |",
    ):
        assert fact in card, fact


def test_the_result_is_that_of_the_published_model(finished: Bench) -> None:
    (result,) = [record.data for record in finished.records() if record.kind == "result"]
    fresh = Bench(finished.folder.parent / "again", output(finished), finished.rows)
    run = fresh.make_run(fresh.order(training_type="full"))
    loss = evaluate.mean_loss(run.objective, run.corpus.validation, 1)
    assert math.exp(loss) == pytest.approx(result["ppl_final"], rel=2e-3)
    assert (result["steps"], result["skipped_steps"]) == (12, 0)


def test_a_model_that_is_begun_lies_where_the_removal_of_its_job_looks_for_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.make()
    with staged_for(home.model("mine"), 3, "a model", params=1) as staged:
        assert list(home.model_stages("mine")) == [staged]
