"""Out of memory: the run goes on with smaller pieces of the same steps, and says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from engine.journal import JournalWriter
from engine.trainer import checkpoint, finetune, ladder, loop, models, step
from engine.trainer.checkpoint import LoopState
from engine.trainer.data.batch import Batch
from engine.trainer.ladder import OutOfMemory, Rung
from engine.trainer.objective import Objective
from engine.trainer.reporter import Reporter
from engine.trainer.run import Run, StopFlag
from engine.trainer.step import train_step
from tests.trainer import families
from tests.trainer.conftest import Bench, Killed
from tests.trainer.families import APART, SHARING

Benches = Callable[[str], Bench]
SEQ_LEN = 96
FOUR = {"steps": 6, "batch_size": 4, "grad_accum": 1, "seq_len": SEQ_LEN}


def recomputed(model: Any) -> list[bool]:
    """Say of each decoder layer whether its activations are recomputed."""
    return [m.gradient_checkpointing for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


class Card:
    """A device with room for the activations of so many tokens; roomy until step `at`.

    A recomputed layer's activations take no room, those of judging the share `judging` of training's.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, room: float, at: int = 1, judging: float = 0) -> None:
        self.room, self.at, self.step = room, at, 0
        self.error: BaseException = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore words.")
        gradients, summed = step.gradients, Objective.summed

        def watched(run: Run, state: LoopState, number: int, watch: Any) -> Any:
            self.step = number
            return gradients(run, state, number, watch)

        def limited(objective: Objective, batch: Batch) -> torch.Tensor:
            kept = recomputed(objective.model).count(False) / len(recomputed(objective.model))
            needed = batch.tokens * (kept if objective.model.training else judging)
            loss = summed(objective, batch)
            if self.step >= self.at and needed > self.room:
                raise self.error  # late, when random numbers were drawn
            return loss

        monkeypatch.setattr(step, "gradients", watched)
        monkeypatch.setattr(Objective, "summed", limited)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Card]:
    """Make a card for the rest of the test."""
    return lambda **limits: Card(monkeypatch, **limits)


def trained(bench: Bench, **hyperparams: Any) -> LoopState:
    run = bench.make_run(bench.order(**hyperparams))
    return loop.train(run, loop.resume(run))


def told_of_memory(bench: Bench) -> list[dict[str, Any]]:
    events = [record.data for record in bench.records() if record.kind == "event"]
    return [event["payload"] for event in events if event["kind"] == "oom"]


def tokens_of_steps(bench: Bench) -> list[int]:
    points = [record.data for record in bench.records() if record.kind == "point"]
    return [point["tokens"] for point in points if point["phase"] == "train"]


def test_the_ladder_halves_the_micro_batch_and_then_recomputes() -> None:
    rung: Rung | None = Rung(5, "none")
    walked = []
    while rung:
        walked.append((rung.batch_size, rung.gradient_checkpointing))
        rung = rung.below()
    assert walked == [(5, "none"), (3, "none"), (2, "none"), (1, "none"), (1, "selective"), (1, "full")]


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (allocated 1 GB)"), True),
        (RuntimeError("The size of tensor a must match the size of tensor b"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, wanted: bool) -> None:
    assert ladder.is_out_of_memory(error) is wanted


# Room for two sequences, for half the layers of one, and for none.
@pytest.mark.parametrize(
    ("room", "rungs"),
    [
        (2 * SEQ_LEN, [(2, 2, "none")]),
        (SEQ_LEN / 2, [(2, 2, "none"), (1, 4, "none"), (1, 4, "selective")]),
        (0, [(2, 2, "none"), (1, 4, "none"), (1, 4, "selective"), (1, 4, "full")]),
    ],
)
def test_out_of_memory_at_a_step_walks_down_and_the_losses_are_those_of_a_run_that_began_there(
    make_bench: Benches, card: Callable[..., Card], room: float, rungs: list[tuple[int, int, str]]
) -> None:
    size, accumulated, mode = rungs[-1]
    began = make_bench("began")
    trained(began, **{**FOUR, "batch_size": size, "grad_accum": accumulated, "gradient_checkpointing": mode})

    walked = make_bench("walked")
    card(room=room, at=3)
    state = trained(walked, **FOUR)
    assert state.rung == Rung(size, mode)
    assert state.skipped == 0
    told = told_of_memory(walked)
    assert [(e["batch_size"], e["grad_accum"], e["gradient_checkpointing"]) for e in told] == rungs
    assert {event["step"] for event in told} == {3}
    for number, (loss, norm) in began.losses().items():
        assert walked.losses()[number] == pytest.approx((loss, norm), rel=1e-5), number
    # The same rows in each step.
    assert tokens_of_steps(walked) == tokens_of_steps(began)
    (line, *_) = [r.data["text"] for r in walked.records() if r.kind == "log" and "Out of memory" in r.data["text"]]
    assert line.startswith("Out of memory at step 3 (CUDA out of memory. Tried to allocate 9 GiB.)")


def test_at_the_foot_of_the_ladder_the_run_fails_with_what_would_fit(
    make_bench: Benches, card: Callable[..., Card]
) -> None:
    limit = card(room=-1)
    for settings, remedies in (
        ({}, "load_in_4bit true, optimizer adamw_8bit, seq_len 48; or a smaller model"),
        ({"load_in_4bit": True, "optimizer": "adamw_8bit"}, "less: seq_len 48; or a smaller model"),
        ({"training_type": "full"}, "training_type lora, optimizer adamw_8bit, seq_len 48"),
    ):
        bench = make_bench("-".join(settings) or "plain")
        limit.step = 0
        run = bench.make_run(bench.order(**FOUR, **settings))
        with pytest.raises(OutOfMemory, match=remedies) as caught:
            loop.train(run, LoopState())
        assert "at step 1" in str(caught.value)
        assert len(told_of_memory(bench)) == 4
        assert checkpoint.published(run.roots) == []


def test_a_resumed_run_stays_on_its_rung(make_bench: Benches, card: Callable[..., Card]) -> None:
    calm = make_bench("calm")
    trained(calm, **{**FOUR, "batch_size": 1, "grad_accum": 4, "gradient_checkpointing": "selective"})
    bench = make_bench("killed")
    card(room=SEQ_LEN / 2, at=2)
    first = bench.make_run(bench.order(**FOUR, save_steps=3), die_at=4)
    with pytest.raises(Killed):
        loop.train(first, loop.resume(first))
    assert len(told_of_memory(bench)) == 3
    second = bench.make_run(bench.order(**FOUR, save_steps=3))
    state = loop.resume(second)
    assert (state.step, state.rung) == (3, Rung(1, "selective"))
    loop.train(second, state)
    assert told_of_memory(bench) == []
    assert recomputed(second.model) == [True, False]
    for number, pair in bench.losses(2).items():
        assert pair == pytest.approx(calm.losses()[number], rel=1e-5)
    assert bench.losses(2)[4] == bench.losses(1)[4]


def test_going_back_to_a_checkpoint_is_no_way_up_the_ladder(
    bench: Bench, card: Callable[..., Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    card(room=SEQ_LEN / 2, at=4)
    gradients = step.gradients

    def spoilt(run: Run, state: LoopState, number: int, watch: Any) -> tuple[torch.Tensor, int]:
        loss, tokens = gradients(run, state, number, watch)
        return (loss * float("nan") if number >= 4 and state.lr_scale == 1 else loss), tokens

    monkeypatch.setattr(step, "gradients", spoilt)
    run = bench.make_run(bench.order(**{**FOUR, "steps": 8}, save_steps=3))
    state = loop.train(run, loop.resume(run))
    assert (state.lr_scale, state.rung) == (0.5, Rung(1, "selective"))
    assert recomputed(run.model) == [True, False]
    assert len(told_of_memory(bench)) == 3


def test_a_step_that_is_tried_again_draws_the_random_numbers_that_it_would_have_drawn(
    make_bench: Benches, card: Callable[..., Card]
) -> None:
    settings = {**FOUR, "lora_dropout": 0.3}
    wanted = make_bench("wanted")
    run = wanted.make_run(wanted.order(**settings))
    on_top, below = LoopState(rung=Rung(4, "none")), LoopState(rung=Rung(2, "none"))
    straight = [train_step(run, on_top if number < 3 else below, number, 1e-3) for number in (1, 2, 3, 4)]

    bench = make_bench("retried")
    again = bench.make_run(bench.order(**settings))
    card(room=2 * SEQ_LEN, at=3)
    state = LoopState(rung=Rung(4, "none"))
    retried = [train_step(again, state, number, 1e-3) for number in (1, 2, 3, 4)]
    assert state.rung == Rung(2, "none")
    assert [(done.loss, done.norm) for done in retried] == [(done.loss, done.norm) for done in straight]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("")], ids=["MemoryError", "no words"])
def test_an_error_without_words_is_one_of_memory_too(
    bench: Bench, card: Callable[..., Card], error: BaseException
) -> None:
    card(room=SEQ_LEN).error = error
    state = trained(bench, **FOUR)
    assert state.rung == Rung(1, "none")
    assert len(told_of_memory(bench)) == 2


def test_another_error_ends_the_run_at_once(bench: Bench, card: Callable[..., Card]) -> None:
    card(room=SEQ_LEN).error = RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")
    with pytest.raises(RuntimeError, match="size of tensor a"):
        trained(bench, **FOUR)
    assert told_of_memory(bench) == []


def test_a_device_with_room_for_one_sequence_carries_out_a_whole_job_of_four(
    bench: Bench, card: Callable[..., Card]
) -> None:
    # Also where the held-out rows of four sequences do not fit at once, which comes before the first step.
    card(room=SEQ_LEN, at=0, judging=1)
    order = bench.order(**{**FOUR, "steps": 2}, val_fraction=0.5)
    finetune.run_job(order, Reporter(JournalWriter(bench.journal_path(), order.fence)), StopFlag())
    assert Path(order.output_path).exists()
    assert told_of_memory(bench)


def test_before_its_first_step_a_card_is_tried_with_as_much_as_any_step_will_ask_for(
    bench: Bench, card: Callable[..., Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.make_run(bench.order(**FOUR, lora_dropout=0.3))
    asked = [run.objective.collate(run.corpus.sequences(4 * number, 4, 0)).input_ids.numel() for number in range(30)]
    tried: list[int] = []
    run.model.get_base_model().get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: tried.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    # A device that is no CPU, as far as the ladder can see; the work itself is done here.
    monkeypatch.setattr(Run, "device", torch.device("meta"))
    card(room=2 * SEQ_LEN, at=0)
    state, random = LoopState(rung=Rung(4, "none")), torch.get_rng_state()
    step.probe(run, state)
    assert tried[0] >= max(asked)
    assert state.rung == Rung(2, "none")
    assert [event["step"] for event in told_of_memory(bench)] == [0]
    # What follows is what would have followed without.
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in run.model.parameters())


@pytest.mark.parametrize("training_type", ["lora", "full"])
def test_recomputing_activations_changes_no_loss_and_no_gradient(make_bench: Benches, training_type: str) -> None:
    found = {}
    for mode, layers in (("none", [False, False]), ("selective", [True, False]), ("full", [True, True])):
        bench = make_bench(mode)
        run = bench.make_run(bench.order(gradient_checkpointing=mode, training_type=training_type, lora_dropout=0.2))
        run.model.train()
        models.set_checkpointing(run.model, mode)
        assert recomputed(run.model) == layers
        passes = [0, 0]
        decoder = [m for m in run.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        for place, layer in enumerate(decoder):

            def count(module: Any, args: Any, place: int = place, passes: list[int] = passes) -> None:
                passes[place] += 1

            layer.input_layernorm.register_forward_pre_hook(count)
        torch.manual_seed(0)
        batch = run.objective.collate(run.corpus.sequences(0, 2, 0))
        loss = run.objective.summed(batch)
        loss.backward()
        assert passes == [2 if again else 1 for again in layers]
        grads = {name: p.grad for name, p in run.model.named_parameters() if p.requires_grad}
        assert all(grad is not None for grad in grads.values())
        found[mode] = (loss.detach(), grads)
    for mode in ("selective", "full"):
        torch.testing.assert_close(found[mode], found["none"], rtol=1e-5, atol=1e-5)


def test_recomputing_is_right_for_models_that_take_the_plain_way_too() -> None:
    for family in ("gpt2", "gptj", "gemma2"):
        grads = []
        for mode in ("none", "full"):
            model = families.make(family).train()
            models.set_checkpointing(model, mode)
            objective = Objective.of(model, torch.device("cpu"), 0, APART)
            objective.summed(objective.collate([APART, SHARING])).backward()
            grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)
