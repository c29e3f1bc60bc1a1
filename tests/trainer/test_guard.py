"""Bad steps: spikes and no-numbers are skipped and told, three no-numbers in a row go back, a second time ends it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine import manifest
from engine.trainer import checkpoint, loop, step
from engine.trainer.checkpoint import LoopState
from engine.trainer.guard import ACTIVE_AFTER, NO_NUMBERS_AT_MOST, WINDOW, Guard
from engine.trainer.ladder import Rung
from engine.trainer.optimizer import trained_parameters
from engine.trainer.run import Diverged, Run, Stopped
from engine.trainer.schedule import learning_rate
from tests.trainer.conftest import Bench

Change = Callable[[Run, LoopState, int, torch.Tensor], torch.Tensor]
NAN, INF = math.nan, math.inf


def noisy(count: int, level: float, *, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(level, 0.05 * level) for _ in range(count)]


def verdicts(guard: Guard, losses: list[float], norms: list[float] | None = None) -> list[str | None]:
    return [guard.judge(loss, norm) for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True)]


def test_a_loss_or_a_norm_that_stands_out_is_a_spike() -> None:
    for spike in ((4.0, 1.0), (2.0, 3.0)):
        guard = Guard()
        assert set(verdicts(guard, noisy(100, 2.0), noisy(100, 1.0, seed=1))) == {None}
        assert guard.judge(*spike) == "spike"
        assert set(verdicts(guard, noisy(100, 2.0), noisy(100, 1.0, seed=1))) == {None}


def test_the_guard_sleeps_until_it_has_seen_enough() -> None:
    guard = Guard()
    assert verdicts(guard, noisy(ACTIVE_AFTER - 1, 2.0)) == [None] * (ACTIVE_AFTER - 1)
    assert guard.judge(50.0, 1.0) is None
    awake = Guard()
    verdicts(awake, noisy(ACTIVE_AFTER, 2.0))
    assert awake.judge(50.0, 1.0) == "spike"


def test_a_rise_that_stays_becomes_normal_after_a_few_steps() -> None:
    guard = Guard()
    verdicts(guard, noisy(WINDOW, 2.0))
    risen = verdicts(guard, noisy(200, 4.0))
    skipped = risen.count("spike")
    assert 1 <= skipped <= 8
    assert risen == ["spike"] * skipped + [None] * (200 - skipped)


def test_training_that_goes_well_is_left_alone() -> None:
    for seed in range(3):
        guard, rng = Guard(), random.Random(seed)
        losses = [(1 + 3 * math.exp(-n / 200)) * rng.gauss(1, 0.1) for n in range(1000)]
        assert set(verdicts(guard, losses, noisy(1000, 1.0, seed=seed))) == {None}
        # Gradient norms of ragged rows have long tails: a step in a thousand may be taken for a spike.
        assert verdicts(Guard(), losses, [rng.lognormvariate(0, 0.25) for _ in range(1000)]).count("spike") <= 1
    # A model that has learnt its rows by heart: tiny losses that hardly move, and a little one way or the other.
    still = Guard()
    assert set(verdicts(still, [1e-3] * 100 + [1.05e-3] + [1e-3] * 20)) == {None}


def test_a_fall_is_no_spike() -> None:
    guard = Guard()
    verdicts(guard, noisy(WINDOW, 5.0))
    assert guard.judge(0.1, 0.01) is None


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (2.0, NAN), (2.0, INF), (-INF, 1.0)])
def test_no_numbers_are_told_at_once_and_three_in_a_row_are_hopeless(loss: float, norm: float) -> None:
    guard = Guard()
    for count in range(1, NO_NUMBERS_AT_MOST + 1):
        assert guard.judge(loss, norm) == "nan"
        assert guard.hopeless == (count == NO_NUMBERS_AT_MOST)
    assert guard.judge(2.0, 1.0) is None
    assert not guard.hopeless
    assert guard.losses == [2.0]


def test_the_guard_remembers_no_more_than_its_window() -> None:
    guard = Guard()
    verdicts(guard, noisy(3 * WINDOW, 2.0))
    assert len(guard.losses) == len(guard.norms) == WINDOW


@pytest.fixture
def tamper(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], list[int]]:
    """Let a function change each step's loss (and gradients) before it is judged; return the steps as they come."""

    def install(change: Change) -> list[int]:
        original, seen = step.gradients, []

        def changed(run: Run, state: LoopState, number: int, watch: Any) -> tuple[torch.Tensor, int]:
            loss, tokens = original(run, state, number, watch)
            seen.append(number)
            return change(run, state, number, loss), tokens

        monkeypatch.setattr(step, "gradients", changed)
        return seen

    return install


def times(run: Run, factor: float, loss: torch.Tensor) -> torch.Tensor:
    """Multiply a step's loss and gradients."""
    for parameter in trained_parameters(run.model).values():
        assert parameter.grad is not None
        parameter.grad.mul_(factor)
    return loss * factor


def prepared(bench: Bench, **hyperparams: Any) -> Run:
    return bench.make_run(bench.order(**hyperparams))


def events(bench: Bench, kind: str) -> list[dict[str, Any]]:
    told = [record.data for record in bench.records() if record.kind == "event"]
    return [event["payload"] for event in told if event["kind"] == kind]


def saved(bench: Bench) -> list[int]:
    """Return the steps at which checkpoints were published, in the order of the telling."""
    return [record.data["step"] for record in bench.records() if record.kind == "checkpoint"]


def test_a_spike_is_skipped_and_told_and_the_same_rows_before_the_guard_wakes_are_not(
    bench: Bench, tamper: Callable[[Change], list[int]]
) -> None:
    states: dict[int, dict[str, torch.Tensor]] = {}

    def spike(run: Run, state: LoopState, number: int, loss: torch.Tensor) -> torch.Tensor:
        states[number] = {name: p.detach().clone() for name, p in trained_parameters(run.model).items()}
        return times(run, 30.0, loss) if number in (30, 70) else loss

    tamper(spike)
    settings = {"steps": 72, "batch_size": 1, "grad_accum": 1, "save_steps": 100, "seq_len": 64}
    run = prepared(bench, **settings)
    state = loop.train(run, loop.resume(run))
    assert (state.step, state.skipped) == (72, 1)
    (told,) = events(bench, "spike")
    assert (told["step"], told["why"]) == (70, "spike")
    assert told["loss"] == bench.losses()[70][0] > 20
    assert sorted(bench.losses()) == list(range(1, 73))

    def moved(number: int) -> bool:
        return any(not torch.equal(states[number][name], states[number + 1][name]) for name in states[number])

    assert moved(30)
    assert not moved(70)
    assert moved(71)
    (line,) = [r.data["text"] for r in bench.records() if r.kind == "log" and "skipped" in r.data["text"]]
    assert line.startswith("Step 70 skipped")


def test_a_step_without_a_number_is_skipped_and_training_goes_on(
    bench: Bench, tamper: Callable[[Change], list[int]]
) -> None:
    tamper(lambda run, state, number, loss: times(run, NAN, loss) if number in (3, 4, 6) else loss)
    run = prepared(bench)
    state = loop.train(run, loop.resume(run))
    assert (state.step, state.skipped, state.lr_scale) == (8, 3, 1.0)
    told = events(bench, "spike")
    assert [(event["step"], event["why"], event["loss"]) for event in told] == [
        (3, "nan", "nan"),
        (4, "nan", "nan"),
        (6, "nan", "nan"),
    ]
    assert events(bench, "rollback") == []
    # The journal is read by others, who know no NaN: such a point has no loss.
    losses = bench.losses()
    assert [number for number, (loss, norm) in losses.items() if loss is None and norm is None] == [3, 4, 6]
    assert all(p.isfinite().all() for p in trained_parameters(run.model).values())
    assert state.train_loss == losses[8][0]


def test_three_in_a_row_go_back_to_the_checkpoint_with_half_the_rate(
    bench: Bench, tamper: Callable[[Change], list[int]]
) -> None:
    def spoil(run: Run, state: LoopState, number: int, loss: torch.Tensor) -> torch.Tensor:
        return times(run, NAN, loss) if number > 5 and state.lr_scale == 1 else loss

    steps = tamper(spoil)
    run = prepared(bench, steps=10, save_steps=1)
    state = loop.train(run, loop.resume(run))
    assert steps == [*range(1, 9), *range(6, 11)]
    assert (state.step, state.lr_scale, state.skipped) == (10, 0.5, 0)
    assert events(bench, "rollback") == [{"step": 5, "lr_scale": 0.5}]
    # Nothing was published while no-numbers came, and what was told of those steps is void.
    assert saved(bench) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    records = bench.records()
    back = next(i for i, record in enumerate(records) if record.kind == "resume" and record.data["step"] == 5)
    assert max(r.data["step"] for r in records[:back] if r.kind == "checkpoint") == 5
    rates = {r.data["step"]: r.data["lr"] for r in records[back:] if r.kind == "point" and r.data["phase"] == "train"}
    settings = run.settings
    for number, rate in rates.items():
        whole = learning_rate(
            number,
            steps=settings.steps,
            peak=settings.lr,
            shape=settings.lr_scheduler,
            warmup=settings.warmup,
        )
        assert rate == pytest.approx(whole / 2)
    assert sorted(rates) == [6, 7, 8, 9, 10]


def test_no_numbers_at_half_the_rate_too_end_the_run_with_its_good_checkpoints(
    bench: Bench, tamper: Callable[[Change], list[int]]
) -> None:
    steps = tamper(lambda run, state, number, loss: times(run, NAN, loss) if number > 5 else loss)
    run = prepared(bench, steps=20, save_steps=1, lr=4e-3)
    with pytest.raises(Diverged, match=r"up to step 8, also at half the learning rate.*Lower lr \(now 0\.002\)"):
        loop.train(run, loop.resume(run))
    assert steps == [*range(1, 9), 6, 7, 8]
    assert saved(bench) == [1, 2, 3, 4, 5]
    newest = checkpoint.newest_good(run.roots, lambda *_: pytest.fail("damaged"))
    assert newest is not None
    assert checkpoint.step_of(newest) == 5
    assert manifest.verify(newest).facts["step"] == 5
    fresh = bench.make_run(bench.order(steps=20, save_steps=1, lr=4e-3))
    state = loop.resume(fresh)
    assert (state.step, state.guard.no_numbers) == (5, 0)
    assert all(p.isfinite().all() for p in trained_parameters(fresh.model).values())


def test_no_numbers_before_the_first_checkpoint_end_the_run_and_leave_none(
    bench: Bench, tamper: Callable[[Change], list[int]]
) -> None:
    tamper(lambda run, state, number, loss: times(run, INF, loss))
    run = prepared(bench, save_steps=1)
    with pytest.raises(Diverged, match=r"before there was a checkpoint.*Lower lr"):
        loop.train(run, loop.resume(run))
    assert checkpoint.published(run.roots) == []


def test_asked_to_stop_between_no_numbers_the_loop_publishes_no_such_state(
    bench: Bench, tamper: Callable[[Change], list[int]]
) -> None:
    def spoil(run: Run, state: LoopState, number: int, loss: torch.Tensor) -> torch.Tensor:
        if number < 4:
            return loss
        run.stop.requested = True
        return times(run, NAN, loss)

    tamper(spoil)
    run = prepared(bench, save_steps=2)
    with pytest.raises(Stopped):
        loop.train(run, loop.resume(run))
    assert saved(bench) == [2]


def test_an_evaluation_of_spoilt_weights_goes_back_too(bench: Bench, tamper: Callable[[Change], list[int]]) -> None:
    def spoil(run: Run, state: LoopState, number: int, loss: torch.Tensor) -> torch.Tensor:
        if number == 6 and state.lr_scale == 1:
            # As an update does that was too large for its type: finite gradients, weights beyond all numbers.
            with torch.no_grad():
                next(iter(trained_parameters(run.model).values())).fill_(INF)
            return times(run, NAN, loss)
        return loss

    tamper(spoil)
    run = prepared(bench, steps=8, save_steps=4, eval_steps=6)
    state = loop.train(run, loop.resume(run))
    assert (state.step, state.lr_scale) == (8, 0.5)
    assert events(bench, "rollback") == [{"step": 4, "lr_scale": 0.5}]
    assert all(p.isfinite().all() for p in trained_parameters(run.model).values())


def test_a_single_step_without_a_number_at_the_end_costs_no_finished_run(
    bench: Bench, tamper: Callable[[Change], list[int]]
) -> None:
    tamper(lambda run, state, number, loss: times(run, NAN, loss) if number == 8 else loss)
    run = prepared(bench)
    state = loop.train(run, loop.resume(run))
    assert (state.step, state.skipped) == (8, 1)
    assert all(p.isfinite().all() for p in trained_parameters(run.model).values())
    assert saved(bench) == [8]


def scaled(scale: float) -> LoopState:
    """Return the state in which a run begins whose gradients are too small for fp16 as they are."""
    return LoopState(rung=Rung(2, "none"), loss_scale=scale)


def test_what_a_loss_is_multiplied_by_changes_no_step(make_bench: Callable[[str], Bench]) -> None:
    plain, scaled_up = make_bench("plain"), make_bench("scaled")
    for bench, scale in ((plain, 1.0), (scaled_up, 2.0**14)):
        run = prepared(bench, steps=3)
        loop.train(run, scaled(scale))
    for number, pair in plain.losses().items():
        assert scaled_up.losses()[number] == pytest.approx(pair, rel=1e-5)


def test_gradients_that_overflow_halve_the_scale_and_cost_no_more_than_their_step(
    bench: Bench, tamper: Callable[[Change], list[int]]
) -> None:
    def overflow(run: Run, state: LoopState, number: int, loss: torch.Tensor) -> torch.Tensor:
        if state.loss_scale > 512:
            times(run, INF, loss)
        return loss  # the loss itself is in order

    tamper(overflow)
    run = prepared(bench)
    state = loop.train(run, scaled(2.0**13))
    assert (state.step, state.skipped, state.loss_scale, state.lr_scale) == (8, 4, 512.0, 1.0)
    assert events(bench, "rollback") == []


def test_a_smaller_scale_is_no_remedy_for_a_loss_without_a_number(
    bench: Bench, tamper: Callable[[Change], list[int]]
) -> None:
    tamper(lambda run, state, number, loss: times(run, NAN, loss) if number > 2 and state.lr_scale == 1 else loss)
    run = prepared(bench, save_steps=1)
    state = loop.train(run, scaled(2.0**14))
    assert events(bench, "rollback") == [{"step": 2, "lr_scale": 0.5}]
    assert (state.step, state.loss_scale) == (8, 2.0**14)
    back = next(i for i, r in enumerate(bench.records()) if r.kind == "resume" and r.data["step"] == 2)
    assert max(r.data["step"] for r in bench.records()[:back] if r.kind == "checkpoint") == 2


def test_a_guarded_run_that_is_resumed_judges_as_it_would_have(
    make_bench: Callable[[str], Bench], tamper: Callable[[Change], list[int]]
) -> None:
    settings = {"steps": 70, "batch_size": 1, "grad_accum": 1, "save_steps": 40, "seq_len": 64}
    tamper(lambda run, state, number, loss: times(run, 30.0, loss) if number == 68 else loss)
    whole, broken = make_bench("whole"), make_bench("broken")
    run = prepared(whole, **settings)
    loop.train(run, loop.resume(run))
    first = broken.make_run(broken.order(**settings), stop_at=50)
    with pytest.raises(Stopped):
        loop.train(first, loop.resume(first))
    second = broken.make_run(broken.order(**settings))
    state = loop.resume(second)
    assert len(state.guard.losses) == 50
    state = loop.train(second, state)
    # In 18 steps of its own it would not have woken.
    assert state.skipped == 1
    assert broken.losses(1) | broken.losses(2) == whole.losses()
