"""Epochs: how many steps they come to is counted from the rows, told at once, and the same after every kill."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.jobs.hyperparams import FinetuneHyperparams
from engine.order import Data, Order
from engine.trainer import loop
from engine.trainer.schedule import learning_rate
from tests import worker
from tests.trainer.conftest import Bench, write_rows

Benches = Callable[[str], Bench]
# 24 rows, of which 20 are trained on, one in a sequence, four a step: five steps an epoch.
FIVE = {"packing": False, "val_fraction": 1 / 6, "val_split": "last", "batch_size": 2, "grad_accum": 2, "save_steps": 3}


def finish(bench: Bench, order: Order, **how: Any) -> int | None:
    """Carry an order out in a process of its own; return how that ended."""
    process = worker.start(bench.folder / f"attempt-{order.fence}", order, **how)
    process.join(120)
    return process.exitcode


def told(bench: Bench, kind: str, fence: int | None = None) -> list[dict[str, Any]]:
    return [record.data for record in bench.records(fence) if record.kind == kind]


@pytest.mark.parametrize(
    ("epochs", "sequences", "size", "steps"),
    [(1, 20, 4, 5), (2, 20, 4, 10), (1, 21, 4, 6), (0.5, 20, 4, 3), (0.001, 20, 4, 1), (1.1, 30, 1, 33), (3, 7, 2, 11)],
)
def test_steps_are_the_sequences_of_all_epochs_by_those_of_a_step_rounded_up(
    epochs: float, sequences: int, size: int, steps: int
) -> None:
    settings = FinetuneHyperparams(epochs=epochs, grad_accum=size)
    assert settings.over(sequences).total_steps == settings.steps_over(sequences) == steps
    assert FinetuneHyperparams(steps=7).over(sequences).total_steps == 7


def test_two_epochs_are_twice_the_steps_of_one_and_see_every_row_twice(make_bench: Benches) -> None:
    runs = {}
    for epochs in (1, 2):
        bench = make_bench(f"{epochs}")
        run = bench.make_run(bench.order(**FIVE, epochs=epochs))
        state = loop.train(run, loop.resume(run))
        runs[epochs] = state.step
        assert told(bench, "steps") == [{"total": state.step}]
        seen = [row for n in run.corpus.order(0, 4 * state.step, 0) for row in run.corpus.training.rows(n)]
        assert sorted(seen) == sorted([*range(20)] * epochs)
        last = [point for point in told(bench, "point") if point["phase"] == "train"][-1]
        assert (last["epoch"], last["eta_s"]) == (epochs, 0)
    assert runs == {1: 5, 2: 10}


def test_the_rate_falls_over_the_steps_that_the_epochs_come_to(bench: Bench) -> None:
    run = bench.make_run(bench.order(**FIVE, epochs=2, warmup_steps=3, warmup_ratio=0.9))
    loop.train(run, loop.resume(run))
    rates = [point["lr"] for point in told(bench, "point") if point["phase"] == "train"]
    wanted = [learning_rate(n, steps=10, peak=5e-3, shape="cosine", warmup=3) for n in range(1, 11)]
    assert rates == pytest.approx(wanted)
    assert rates.index(max(rates)) == 2


def test_a_run_of_epochs_that_was_killed_ends_as_the_one_left_alone(make_bench: Benches) -> None:
    calm, killed = make_bench("calm"), make_bench("killed")
    settings = {**FIVE, "epochs": 2, "lora_dropout": 0.1}
    assert finish(calm, calm.order(**settings)) == 0
    assert finish(killed, killed.order(**settings), dying_at='{"step": 5, "phase": "train"') == -signal.SIGKILL
    assert finish(killed, killed.order(**settings)) == 0
    assert told(killed, "resume") == [{"step": 3}]
    assert killed.losses(1) | killed.losses(2) == calm.losses()
    assert sorted(calm.losses()) == list(range(1, 11))
    assert told(killed, "steps", 1) == told(killed, "steps", 2) == told(calm, "steps") == [{"total": 10}]
    weights = [(bench.folder / "models" / "out-id" / "model.safetensors").read_bytes() for bench in (calm, killed)]
    assert weights[0] == weights[1]


def test_a_worker_trains_on_two_datasets_and_holds_out_the_last_of_each(bench: Bench) -> None:
    more = write_rows(bench.folder.parent / "more.jsonl", *({"text": f"plain text number {n}"} for n in range(20)))
    order = bench.order(**FIVE | {"val_fraction": 0.1}, epochs=1)  # 44 rows, of which 4 are held out: 10 steps
    order = replace(order, more_datasets=(Data("more", str(more), "1" * 64, "text"),))
    assert finish(bench, order) == 0
    (result,) = told(bench, "result")
    assert (result["rows_trained"], result["rows_held_out"], result["steps"]) == (40, 4, 10)
    assert result["sample_prompt"].startswith("What is")
    card = (Path(order.output_path) / "README.md").read_text()
    assert "- dataset: `sums, more`" in card


def test_a_bad_row_of_one_of_several_datasets_ends_the_job_with_its_name(bench: Bench) -> None:
    bad = write_rows(
        bench.folder.parent / "bad.jsonl", {"text": "fine"}, {"prompt": "a", "chosen": "b", "rejected": "c"}
    )
    order = replace(bench.order(), more_datasets=(Data("worse", str(bad), ""),))
    assert finish(bench, order) == 0
    (end,) = told(bench, "end")
    assert end["outcome"] == "failed"
    assert end["error"].startswith("Dataset worse, line 2: has the format dpo")
