"""A run that was killed, however often, gives the losses and the model of one that was left alone, bit for bit."""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import journal
from engine.order import Order
from engine.trainer import loop
from tests import worker
from tests.trainer.conftest import Bench, Killed

Benches = Callable[[str], Bench]
STEPS, KILLS = 60, 10

# Two sequences of packed rows in each of two forward passes; what draws random numbers is switched on.
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora_dropout": 0.2, "neftune_alpha": 5.0},
    "qlora": {"load_in_4bit": True, "lora_dropout": 0.2, "gradient_checkpointing": "selective"},
    "full": {"training_type": "full", "optimizer": "adamw_8bit", "lr": 1e-3},
}
COMMON = {"steps": STEPS, "batch_size": 2, "grad_accum": 2, "save_steps": 3, "eval_steps": 20}


def attempt(bench: Bench, **hyperparams: Any) -> tuple[Path, Order]:
    """Write down the next attempt as the supervisor does."""
    order = bench.order(**hyperparams)
    return bench.folder / f"attempt-{order.fence}", order


def sealed(bench: Bench) -> str:
    """Return the hash of the published weights."""
    return hashlib.sha256((bench.folder / "models" / "out-id" / "model.safetensors").read_bytes()).hexdigest()


def told(bench: Bench, fence: int) -> dict[tuple[str, int], tuple[float, ...]]:
    """Return (loss, gradient norm, tokens) of each training step that an attempt told, and each held-out loss."""
    points = [record.data for record in journal.read(bench.journal_path(fence), 0).records if record.kind == "point"]
    return {
        (point["phase"], point["step"]): (point["loss"], point.get("grad_norm"), point["tokens"]) for point in points
    }


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "qlora" else kind for kind in KINDS]
)
def test_killed_at_ten_random_steps_every_loss_is_that_of_the_run_left_alone(make_bench: Benches, kind: str) -> None:
    settings = {**COMMON, **KINDS[kind]}
    calm, killed = make_bench("calm"), make_bench("killed")
    undisturbed = worker.start(*attempt(calm, **settings))

    rng = random.Random(kind)
    for step in sorted(rng.sample(range(4, STEPS - 20), KILLS)):
        # At a random moment of the steps behind it, by a clock of its own: nobody here has to look at it in time.
        fate = worker.Fate(step=step, after_s=rng.uniform(0.0, 0.02))
        process = worker.start(*attempt(killed, **settings), fate=fate)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    for running in (worker.start(*attempt(killed, **settings)), undisturbed):
        running.join()
        assert running.exitcode == 0

    wanted = told(calm, 1)
    assert [step for phase, step in wanted if phase == "train"] == list(range(1, STEPS + 1))
    seen = set()
    resumed = []
    for fence in range(1, killed.fence + 1):
        found = told(killed, fence)
        seen |= found.keys()
        # Also what was told twice, by an attempt that died and by the one after it.
        assert found == {key: wanted[key] for key in found}
        resumed += [r.data["step"] for r in killed.records(fence) if r.kind == "resume"]
    assert seen == wanted.keys()
    assert resumed == sorted(resumed)
    assert len(resumed) == KILLS + 1
    assert resumed[-1] > 0
    ends = [bench.records()[-1] for bench in (calm, killed)]
    assert [end.data["outcome"] for end in ends] == ["completed", "completed"]
    results = [next(r.data for r in bench.records() if r.kind == "result") for bench in (calm, killed)]
    assert all(result.pop("gpu_seconds") > 0 for result in results)
    assert results[0] == results[1]
    assert sealed(calm) == sealed(killed)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_optimiser_goes_on_as_if_nothing_had_been(make_bench: Benches, kind: str, optimizer: str) -> None:
    settings = {**KINDS[kind], "optimizer": optimizer, "steps": 6, "save_steps": 2, "lora_rank": 16}
    calm, killed = make_bench("calm"), make_bench("killed")
    straight = calm.make_run(calm.order(**settings))
    loop.train(straight, loop.resume(straight))
    first = killed.make_run(killed.order(**settings), die_at=5)
    with pytest.raises(Killed):
        loop.train(first, loop.resume(first))
    second = killed.make_run(killed.order(**settings))
    state = loop.resume(second)
    assert state.step == 4
    loop.train(second, state)
    assert killed.losses(2) == {step: calm.losses()[step] for step in (5, 6)}
