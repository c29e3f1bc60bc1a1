"""An evaluation tells how far it is, is left where the run is to stop, and made by the next attempt to the same end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from engine.journal import JournalWriter
from engine.trainer import checkpoint, evaluate, finetune, loop, train
from engine.trainer.checkpoint import LoopState
from engine.trainer.reporter import Reporter
from engine.trainer.run import Run, StopFlag, Stopped
from tests.trainer.conftest import Bench

Benches = Callable[[str], Bench]
# Twelve rows are held out, a sequence each, in batches of two.
LONG = {"steps": 6, "eval_steps": 3, "save_steps": 100, "val_fraction": 0.5, "packing": False, "lora_dropout": 0.1}


class Leaving(Reporter):
    """Reports as ever, and asks the run to stop when this is being done."""

    def __init__(self, writer: JournalWriter, stop: StopFlag, at: str) -> None:
        super().__init__(writer)
        self._stop, self._at = stop, at

    def activity(self, text: str, *, done: float | None = None, eta_s: float | None = None) -> None:
        """Say what is being done."""
        super().activity(text, done=done, eta_s=eta_s)
        self._stop.requested |= text == self._at


def leaving(bench: Bench, at: str, **settings: Any) -> Run:
    """Return the next attempt's run, which is asked to stop when it does what `at` says."""
    order = bench.order(**{**LONG, **settings})
    run = bench.make_run(order)
    reporter = Leaving(JournalWriter(bench.journal_path(), order.fence), run.stop, at)
    return Run(**{name: getattr(run, name) for name in run.__dataclass_fields__} | {"reporter": reporter})


def left(bench: Bench, at: str, **settings: Any) -> Run:
    """Carry out an attempt that is stopped so."""
    run = leaving(bench, at, **settings)
    with pytest.raises(Stopped):
        loop.train(run, loop.resume(run))
    return run


def told(bench: Bench, *fences: int) -> dict[tuple[str, int], tuple[Any, ...]]:
    points = [record.data for fence in fences for record in bench.records(fence) if record.kind == "point"]
    return {(one["phase"], one["step"]): (one["loss"], one.get("grad_norm"), one["tokens"]) for one in points}


def facts(state: LoopState) -> dict[str, Any]:
    """Return all of a state but the time that it took."""
    return {name: value for name, value in asdict(state).items() if name != "seconds"}


def test_a_run_whose_evaluations_were_left_ends_as_the_one_left_alone_bit_for_bit(make_bench: Benches) -> None:
    calm, other = make_bench("calm"), make_bench("other")
    straight = calm.make_run(calm.order(**LONG))
    wanted = loop.train(straight, loop.resume(straight))
    assert [step for step, _ in wanted.curve] == [3, 6]

    run = left(other, "evaluating at step 3")
    assert list(told(other, 1)) == [("train", 1), ("train", 2), ("train", 3)]
    assert run.model.training
    assert [checkpoint.step_of(path) for path in checkpoint.published(run.roots)] == [3]
    left(other, "evaluating at step 3")  # the one that is owed is left again
    assert told(other, 2) == {}
    left(other, "evaluating at step 6")  # the last step's, without which nothing is to be published
    assert list(told(other, 3)) == [("eval", 3), ("train", 4), ("train", 5), ("train", 6)]
    last = other.make_run(other.order(**LONG))
    found = loop.train(last, loop.resume(last))
    assert list(told(other, 4)) == [("eval", 6)]
    assert told(other, 1, 2, 3, 4) == told(calm, 1)
    assert facts(found) == facts(wanted)


def test_the_best_of_a_run_has_the_loss_of_its_own_evaluation_though_that_was_left(bench: Bench) -> None:
    # The first evaluation is the best by far: at such a rate the second step leads astray.
    settings = {"early_stopping_patience": 1, "eval_steps": 1, "training_type": "full", "lr": 0.3, "warmup_ratio": 0}
    left(bench, "evaluating at step 1", **settings)
    run = bench.make_run(bench.order(**{**LONG, **settings}))
    state = loop.resume(run)
    assert state.owed
    state = loop.train(run, state)
    (_, lowest), (_, highest) = state.curve
    assert lowest < highest
    best = loop.take_best(run, state)
    assert (best.step, best.eval_loss) == (1, lowest)


def test_how_far_an_evaluation_is_is_told_now_and_then(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.make_run(bench.order(**LONG))
    state = loop.resume(run)
    loop.begin(run, state)
    loop.evaluate_now(run, state, "evaluating")
    activities = [record.data["text"] for record in bench.records() if record.kind == "activity"]
    assert activities[-2:] == ["evaluating", "training"]
    monkeypatch.setattr(evaluate, "TELL_EVERY_S", 0.0)
    loop.evaluate_now(run, state, "evaluating")
    activities = [record.data["text"] for record in bench.records() if record.kind == "activity"]
    wanted = [f"evaluating ({done} of 12 sequences)" for done in (2, 4, 6, 8, 10)]
    assert activities[-7:] == ["evaluating", *wanted, "training"]


def test_a_baseline_that_is_left_leaves_nothing_behind(bench: Bench, tokenizer: Any) -> None:
    run = leaving(bench, "evaluating the model as it is")
    state = loop.resume(run)
    loop.begin(run, state)
    with pytest.raises(Stopped):
        finetune.judge_baseline(run, tokenizer, state)
    assert facts(state) == facts(LoopState(rung=state.rung, loss_scale=state.loss_scale))
    assert checkpoint.published(run.roots) == []
    assert told(bench, 1) == {}


@pytest.mark.parametrize("at", ["evaluating the model as it was", "evaluating the model as it is saved"])
def test_a_train_job_leaves_its_evaluations_too(bench: Bench, at: str) -> None:
    settings = {"steps_per_cycle": 1, "cycles": 1, "val_fraction": 0.5, "packing": False, "seq_len": 32}
    order = bench.order(type="train", **settings)
    stop = StopFlag()
    with pytest.raises(Stopped):
        train.run_job(order, Leaving(JournalWriter(bench.journal_path(), order.fence), stop, at), stop)
    activities = [record.data["text"] for record in bench.records() if record.kind == "activity"]
    assert activities[-1] == at
    assert not any(record.kind in ("model", "result") for record in bench.records())
