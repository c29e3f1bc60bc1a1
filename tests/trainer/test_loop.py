"""The loop and what comes out of it: resuming, stopping, diverging, publishing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import manifest
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.journal import JournalWriter
from engine.trainer import checkpoint, evaluate, finetune, loop
from engine.trainer.checkpoint import LoopState
from engine.trainer.ladder import Rung
from engine.trainer.optimizer import trained_parameters
from engine.trainer.reporter import Reporter
from engine.trainer.run import Diverged, Run, StopFlag, Stopped
from engine.trainer.step import train_step
from tests.trainer.conftest import Bench, Killed

Benches = Callable[[str], Bench]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained_parameters(run.model).items()}


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
        done = train_step(run, LoopState(rung=Rung(batch_size, "none")), 1, 1e-3)
        found[batch_size] = (done.loss, done.norm, done.tokens)
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
        wanted[step] = evaluate.mean_loss(run.objective, run.corpus.sequences(2 * (step - 1), 2, seed=0), 1)
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
    with pytest.raises(Diverged, match=r"3 times in a row.*training diverged. Lower lr \(now 5e\+29\)"):
        loop.train(run, loop.resume(run))
    assert [checkpoint.step_of(path) for path in checkpoint.published(run.roots)] == [2, 1]
    for path in checkpoint.published(run.roots):
        manifest.verify(path)
    told = [(record.kind, record.data) for record in bench.records()]
    assert ("event", {"kind": "rollback", "payload": {"step": 2, "lr_scale": 0.5}}) in told


def test_evaluation_and_saving_come_at_their_steps_and_the_best_is_kept(bench: Bench) -> None:
    run = bench.make_run(bench.order(steps=10, eval_steps=2, save_steps=2, lr=1e-2))
    state = loop.resume(run)
    state = loop.train(run, state)
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


# Fully trained at such a rate, the tiny model is as good as it gets after some thirty steps.
RESTLESS: dict[str, Any] = {
    "steps": 200,
    "training_type": "full",
    "lr": 3e-2,
    "lr_scheduler": "constant",
    "eval_steps": 4,
    "val_fraction": 0.3,
    "save_steps": 1000,
    "early_stopping_patience": 2,
    "early_stopping_min_delta": 0.0,
}


def held_out(bench: Bench, fence: int | None = None) -> dict[int, float]:
    points = [record.data for record in bench.records(fence) if record.kind == "point"]
    return {point["step"]: point["loss"] for point in points if point["phase"] == "eval"}


def test_without_a_better_loss_the_run_stops_and_publishes_its_best(bench: Bench) -> None:
    order = bench.order(**RESTLESS)
    finetune.run_job(order, Reporter(JournalWriter(bench.journal_path(), order.fence)), StopFlag())
    losses = held_out(bench)
    last, best = max(losses), min(losses, key=losses.__getitem__)
    (stopped,) = [r.data["payload"] for r in bench.records() if r.data.get("kind") == "early_stop"]
    assert stopped == {"step": last, "best_step": best}
    assert 0 < best == last - 2 * 4 < 200
    (result,) = [record.data for record in bench.records() if record.kind == "result"]
    assert result["ppl_final"] == math.exp(losses[best]) < math.exp(losses[last])
    assert result["steps"] == best
    assert result["skipped_steps"] == 0
    # Its very weights: judged again from what was published, it is as good as then.
    again = Bench(bench.folder.parent / "again", Path(order.output_path), bench.rows)
    run = again.make_run(again.order(training_type="full", val_fraction=0.3))
    assert evaluate.mean_loss(run.objective, run.corpus.validation, 2) == pytest.approx(losses[best], rel=2e-3)


def test_a_run_that_stopped_early_and_died_before_it_published_does_not_train_on(bench: Bench) -> None:
    first = bench.make_run(bench.order(**RESTLESS))
    ended = loop.train(first, loop.resume(first))
    assert ended.step < 200
    best = loop.take_best(first, ended)
    second = bench.make_run(bench.order(**RESTLESS))
    state = loop.train(second, loop.resume(second))
    assert bench.losses() == {}
    again = loop.take_best(second, state)
    assert (again.step, again.eval_loss) == (best.step, best.eval_loss)
    assert_equal_weights(first, second)


def test_a_best_checkpoint_that_is_damaged_is_not_published(bench: Bench) -> None:
    run = bench.make_run(bench.order(**RESTLESS))
    state = loop.train(run, loop.resume(run))
    last = weights(run)
    file = run.roots[0] / f"step-{state.best_step:08d}" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))
    left = loop.take_best(run, state)
    assert left.step == state.step
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(run).items())
    (gone,) = [r.data for r in bench.records() if r.kind == "checkpoint_gone" and r.data["state"] == "quarantined"]
    assert gone["step"] == state.best_step


def test_what_counts_as_better_is_for_the_request_to_say(make_bench: Benches) -> None:
    # An improvement of less than ten nats is none: the first evaluation is the best, and two more end the run.
    bench = make_bench("demanding")
    run = bench.make_run(bench.order(**{**RESTLESS, "early_stopping_min_delta": 10.0}))
    state = loop.train(run, loop.resume(run))
    assert state.step == 3 * 4
    patient = make_bench("patient")
    run = patient.make_run(patient.order(**{**RESTLESS, "early_stopping_patience": 0, "steps": 60}))
    assert loop.train(run, loop.resume(run)).step == 60


def test_evaluations_come_ten_times_a_run_unless_told_otherwise(bench: Bench) -> None:
    settings = {"steps": 60, "lr": 1e-4, "batch_size": 1, "grad_accum": 1, "seq_len": 32}
    run = bench.make_run(bench.order(**settings))
    loop.train(run, loop.resume(run))
    assert sorted(held_out(bench)) == [25, 50, 60]  # 25 steps apart at least
    assert {steps: FinetuneHyperparams(steps=steps).eval_interval for steps in (100, 250, 2000)} == {
        100: 25,
        250: 25,
        2000: 200,
    }


def test_noise_on_the_embeddings_changes_training_and_not_what_is_judged(make_bench: Benches) -> None:
    plain, noisy = make_bench("plain"), make_bench("noisy")
    runs = [bench.make_run(bench.order(steps=2, neftune_alpha=alpha)) for bench, alpha in ((plain, 0.0), (noisy, 20.0))]
    before = [evaluate.mean_loss(run.objective, run.corpus.validation, 1) for run in runs]
    assert before[0] == before[1]
    for run in runs:
        loop.train(run, loop.resume(run))
    assert plain.losses()[1] != noisy.losses()[1]


def test_without_packing_a_sequence_is_a_row_and_the_loss_the_same(make_bench: Benches) -> None:
    packed, single = make_bench("packed"), make_bench("single")
    runs = [bench.make_run(bench.order(packing=flag)) for bench, flag in ((packed, True), (single, False))]
    assert len(runs[0].corpus.training) < len(runs[1].corpus.training) == runs[1].corpus.training_rows
    assert {len(sequence) for sequence in runs[1].corpus.training} == {1}
    losses = [evaluate.mean_loss(run.objective, run.corpus.training, 4) for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_deterministic_kernels_give_the_same_losses_and_are_on(make_bench: Benches) -> None:
    plain, strict = make_bench("plain"), make_bench("strict")
    train_straight(plain, steps=3, training_type="full")
    try:
        train_straight(strict, steps=3, training_type="full", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    for step, pair in plain.losses().items():
        assert strict.losses()[step] == pytest.approx(pair, rel=1e-5)


def test_seconds_of_a_step_are_split_into_its_parts(bench: Bench) -> None:
    train_straight(bench, steps=3, save_steps=1)
    points = [r.data for r in bench.records() if r.kind == "point" and r.data["phase"] == "train"]
    for point in points:
        parts = [point[name] for name in ("data_s", "forward_s", "backward_s", "optimizer_s")]
        assert all(part > 0 for part in parts)
        assert sum(parts) <= point["step_s"] * (1 + 1e-5)  # six digits are told
        assert point["throughput"] == pytest.approx(
            (point["tokens"] - sum(p["tokens"] for p in points if p["step"] == point["step"] - 1)) / point["step_s"],
            rel=1e-4,
        )
    # A point is told before its own step is saved, so it has the save before.
    assert [point["save_s"] > 0 for point in points] == [False, True, True]
