"""The loop and what comes out of it: resuming, stopping, diverging, publishing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import manifest
from engine.errors import NoSpace
from engine.journal import JournalWriter
from engine.trainer import checkpoint, evaluate, finetune, loop, models
from engine.trainer.batch import Document, collate
from engine.trainer.checkpoint import LoopState
from engine.trainer.loop import Diverged, Run, StopFlag, Stopped
from engine.trainer.reporter import Reporter
from tests.trainer.conftest import Bench, Killed

Benches = Callable[[str], Bench]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in checkpoint.trained_parameters(run.model).items()}


def train_straight(bench: Bench, **hyperparams: Any) -> Run:
    run = bench.make_run(bench.order(**hyperparams))
    loop.train(run, loop.resume(run))
    return run


def assert_equal_weights(one: Run, other: Run) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("training_type", ["lora", "full"])
def test_stopped_after_five_of_eight_steps_and_resumed_gives_the_very_losses_of_a_run_straight_through(
    make_bench: Benches, training_type: str
) -> None:
    # Dropout draws from the random states, so these must come back too.
    settings = {"training_type": training_type, "lora_dropout": 0.1}
    straight = make_bench("straight")
    whole = train_straight(straight, **settings)
    assert sorted(straight.losses()) == list(range(1, 9))

    broken = make_bench("broken")
    first = broken.make_run(broken.order(**settings), stop_at=5)
    with pytest.raises(Stopped):
        loop.train(first, loop.resume(first))
    torch.manual_seed(12345)
    second = broken.make_run(broken.order(**settings))
    state = loop.resume(second)
    assert state.step == 5
    loop.train(second, state)

    assert broken.losses(1) | broken.losses(2) == straight.losses()
    assert sorted(broken.losses(2)) == [6, 7, 8]
    assert_equal_weights(second, whole)


def test_killed_between_checkpoints_and_with_the_newest_damaged_the_run_still_ends_the_same(
    make_bench: Benches,
) -> None:
    settings = {"save_steps": 2, "lora_dropout": 0.1}
    straight = make_bench("straight")
    whole = train_straight(straight, **settings)

    broken = make_bench("broken")
    first = broken.make_run(broken.order(**settings), die_at=7)
    with pytest.raises(Killed):
        loop.train(first, loop.resume(first))
    newest = first.roots[0] / "step-00000006"
    (newest / "weights.safetensors").write_bytes(b"damaged")
    (first.roots[0] / ".stage-00000007").mkdir()

    second = broken.make_run(broken.order(**settings))
    state = loop.resume(second)
    assert state.step == 4
    assert sorted(path.name for path in first.roots[0].iterdir()) == ["step-00000004", "step-00000006.damaged"]
    loop.train(second, state)
    assert broken.losses(1) | broken.losses(2) == straight.losses()
    assert_equal_weights(second, whole)

    told = [(record.kind, record.data) for record in broken.records()]
    (gone,) = [data for kind, data in told if kind == "checkpoint_gone" and data["state"] == "quarantined"]
    assert gone["step"] == 6
    assert "weights.safetensors" in gone["why"]
    assert ("resume", {"step": 4}) in told
    assert state.tokens == sum(p["tokens"] for kind, p in told if kind == "point" and p["step"] == 8 and "lr" in p)


def test_accumulation_changes_how_a_step_is_cut_and_not_what_it_does(make_bench: Benches) -> None:
    runs = {cut: make_bench(f"{cut}") for cut in ((4, 1), (2, 2), (1, 4))}
    found = {}
    for (batch_size, grad_accum), bench in runs.items():
        run = bench.make_run(bench.order(batch_size=batch_size, grad_accum=grad_accum))
        found[batch_size] = loop.train_step(run, 1)
    for batch_size in (2, 1):
        assert found[batch_size] == pytest.approx(found[4], rel=1e-5)
        assert found[batch_size][2] == found[4][2]


def test_each_step_trains_on_the_sequences_that_its_number_names(bench: Bench) -> None:
    # At so small a rate the weights stay as they are, so the loss of a step says which rows it saw.
    run = bench.make_run(bench.order(steps=12, lr=1e-30, batch_size=1, grad_accum=2))
    size = len(run.corpus.training)
    assert size > 4
    wanted = {}
    for step in range(1, 13):
        batches = [collate([each], run.corpus.pad) for each in run.corpus.sequences(2 * (step - 1), 2, seed=0)]
        wanted[step] = evaluate.mean_loss(run.model, batches, run.device)
    loop.train(run, loop.resume(run))
    told = {step: loss for step, (loss, _) in bench.losses().items()}
    assert told == pytest.approx(wanted, rel=1e-5)
    assert len({round(loss, 6) for loss in told.values()}) > 4


def test_training_lowers_the_loss(bench: Bench) -> None:
    train_straight(bench, steps=30, lr=1e-2, training_type="full")
    losses = bench.losses()
    assert losses[30][0] < 0.8 * losses[1][0]


def test_asked_to_stop_the_loop_ends_its_step_saves_and_says_so(bench: Bench) -> None:
    run = bench.make_run(bench.order(), stop_at=3)
    with pytest.raises(Stopped):
        loop.train(run, loop.resume(run))
    assert sorted(bench.losses()) == [1, 2, 3]
    assert [path.name for path in checkpoint.published(run.roots)] == ["step-00000003"]
    facts = manifest.verify(run.roots[0] / "step-00000003").facts
    (told,) = [record.data for record in bench.records() if record.kind == "checkpoint"]
    assert told["path"] == str(run.roots[0] / "step-00000003")
    assert {key: told[key] for key in facts} == facts
    assert facts["loss"] == bench.losses()[3][0]


def test_asked_to_stop_before_its_first_step_the_loop_saves_nothing(bench: Bench) -> None:
    run = bench.make_run(bench.order())
    run.stop.requested = True
    with pytest.raises(Stopped):
        loop.train(run, loop.resume(run))
    assert checkpoint.published(run.roots) == []
    assert bench.losses() == {}


def test_a_run_that_diverges_ends_with_advice_and_its_checkpoints(bench: Bench) -> None:
    good = bench.make_run(bench.order(steps=5, save_steps=1), stop_at=2)
    with pytest.raises(Stopped):
        loop.train(good, loop.resume(good))
    run = bench.make_run(bench.order(steps=20, save_steps=100))
    # No request may ask for such a rate; it stands for whatever makes a loss infinite.
    absurd = run.settings.model_copy(update={"lr": 1e30, "warmup_ratio": 0.0})
    run = Run(**{**{name: getattr(run, name) for name in Run.__dataclass_fields__}, "settings": absurd})
    with pytest.raises(Diverged, match=r"at step \d+: training diverged. Lower lr \(now 1e\+30\)"):
        loop.train(run, loop.resume(run))
    assert [checkpoint.step_of(path) for path in checkpoint.published(run.roots)] == [2, 1]
    for path in checkpoint.published(run.roots):
        manifest.verify(path)
    assert all(math.isfinite(loss) for loss, _ in bench.losses().values())


def test_evaluation_and_saving_come_at_their_steps_and_the_best_is_kept(bench: Bench) -> None:
    run = bench.make_run(bench.order(steps=10, eval_steps=2, save_steps=2, lr=1e-2))
    state = loop.resume(run)
    loop.train(run, state)
    evaluated = {
        r.data["step"]: r.data["loss"] for r in bench.records() if r.kind == "point" and r.data["phase"] == "eval"
    }
    assert sorted(evaluated) == [2, 4, 6, 8, 10]
    assert state.best_loss == min(evaluated.values())
    assert evaluated[state.best_step] == state.best_loss
    kept = {checkpoint.step_of(path) for path in checkpoint.published(run.roots)}
    assert kept == {8, 10, state.best_step}
    gone = {record.data["step"] for record in bench.records() if record.kind == "checkpoint_gone"}
    assert gone == {2, 4, 6} - {state.best_step}
    # One write, evaluation first: who has seen step N has seen all of it.
    order = [(r.data["step"], r.data["phase"]) for r in bench.records() if r.kind == "point"]
    assert order.index((4, "eval")) + 1 == order.index((4, "train"))


def test_only_adapters_learn_in_a_lora_run_and_everything_in_a_full_one(make_bench: Benches) -> None:
    for training_type in ("lora", "full"):
        bench = make_bench(training_type)
        run = bench.make_run(bench.order(training_type=training_type))
        before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
        loop.train(run, LoopState(step=6))
        moved = {name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])}
        if training_type == "lora":
            assert moved
            assert all("lora_" in name for name in moved)
        else:
            assert moved == set(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    """A LoRA job carried out from order to published model."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("finished")
    bench = Bench(folder / "job", tiny_model, tiny.make_rows(folder / "sums.jsonl", 24))
    order = bench.order(steps=12, lr=2e-2)
    finetune.run_job(order, Reporter(JournalWriter(bench.journal_path(), order.fence)), StopFlag())
    return bench


def output(bench: Bench) -> Path:
    return bench.folder / "models" / "out-id"


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
    batch = collate([[Document([5, 6, 7], [5, 6, 7])]], pad=0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert models.sixteen_bits(model, batch, torch.device("cpu")) == torch.float16
    with torch.no_grad():
        # Weights that fit, with activations that do not.
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(3e4)
            layer.mlp.gate_proj.weight.mul_(3e4)
    assert max(float(parameter.abs().max()) for parameter in model.parameters()) < 30_000
    assert models.sixteen_bits(model, batch, torch.device("cpu")) == torch.bfloat16


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

    order = bench.order(steps=1)
    usage = shutil.disk_usage(bench.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoSpace, match=r"checkpoint of step 1|model out"):
        finetune.run_job(order, Reporter(JournalWriter(bench.journal_path(), 1)), StopFlag())
    assert not output(bench).exists()


def test_a_model_that_gives_no_numbers_is_not_called_fit_for_fp16(tiny_model: Path) -> None:
    batch = collate([[Document([5, 6, 7], [5, 6, 7])]], pad=0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert models.sixteen_bits(model, batch, torch.device("cpu")) == torch.bfloat16
