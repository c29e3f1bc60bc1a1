"""One optimiser step: forward, backward, clip, judge, update; and the way down when the memory ends.

The rule: what a step does depends on its number, the seed and the restored state alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from engine.jobs.hyperparams import LoopHyperparams, TrainHyperparams
from engine.trainer import device as devices
from engine.trainer import ladder, models
from engine.trainer import optimizer as optimizers
from engine.trainer.checkpoint import LoopState
from engine.trainer.ladder import OutOfMemory
from engine.trainer.run import Run
from engine.trainer.stopwatch import Stopwatch


@dataclass(frozen=True)
class Step:
    """What one optimiser step came to: mean loss per target token, gradient norm, tokens, seconds by part."""

    loss: float
    norm: float
    tokens: int
    parts: dict[str, float]
    verdict: str | None = None


def gradients(run: Run, state: LoopState, step: int, watch: Stopwatch) -> tuple[torch.Tensor, int]:
    """Work out the gradients of step number `step`; return (mean loss per target token, tokens without padding).

    Leaves them in `.grad`, multiplied by `state.loss_scale`. Raises what a device without memory raises.
    """
    settings = run.settings
    size = settings.batch_size * settings.grad_accum
    with watch.part("data_s"):
        sequences = run.corpus.sequences((step - 1) * size, size, settings.seed)
        starts = range(0, size, state.rung.batch_size)
        batches = [run.objective.collate(sequences[start : start + state.rung.batch_size]) for start in starts]
    # Divided by the targets of the whole step, so that accumulation does not change what is minimised.
    targets = max(sum(batch.target_count for batch in batches), 1)
    total = torch.zeros((), device=run.device)
    for batch in batches:
        with watch.part("forward_s"):
            loss = run.objective.summed(batch) / targets
        with watch.part("backward_s"):
            (loss * state.loss_scale).backward()
        total += loss.detach()
    if run.penalty:
        # Part of what is minimised, and no part of the loss that is reported: runs without it are compared by that.
        with watch.part("forward_s"):
            penalty = run.penalty(step)
        with watch.part("backward_s"):
            (penalty * state.loss_scale).backward()
    return total, sum(batch.tokens for batch in batches)


def train_step(run: Run, state: LoopState, step: int, rate: float) -> Step:
    """Do optimiser step number `step`, or skip it where the guard says so.

    Where the device has no memory left, the step is worked out again one rung down the ladder: the same sequences,
    the same random numbers. Raises OutOfMemory at its foot.
    """
    random_states = devices.rng_state(run.device)
    while True:
        watch = Stopwatch(run.device)
        try:
            loss, tokens = gradients(run, state, step, watch)
            break
        except Exception as error:
            if not ladder.is_out_of_memory(error):
                raise
            reason = ladder.reason(error)
        # Outside the handler, where the error no longer holds the graph.
        run.optimizer.zero_grad(set_to_none=True)
        devices.free_memory(run.device)
        devices.set_rng_state(run.device, random_states)
        climb_down(run, state, step, reason)
    with watch.part("optimizer_s"):
        parameters = optimizers.trained_parameters(run.model).values()
        if state.loss_scale != 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(state.loss_scale)
        norm = torch.nn.utils.clip_grad_norm_(parameters, run.settings.max_grad_norm, error_if_nonfinite=False)
        verdict = state.guard.judge(float(loss), float(norm))
        if verdict is None:
            for group in run.optimizer.param_groups:
                group["lr"] = rate * group[optimizers.RATE]
            run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    devices.synchronize(run.device)
    return Step(float(loss), float(norm), tokens, watch.seconds(), verdict)


def climb_down(run: Run, state: LoopState, step: int, reason: str) -> None:
    """Take the next rung of the ladder and say so. Raises OutOfMemory where there is none."""
    below = state.rung.below()
    if below is None:
        raise OutOfMemory(
            f"no memory left at step {step} even with one sequence at a time and every activation recomputed "
            f"({reason}). {_what_would_fit(run.settings)}"
        )
    state.rung = below
    models.set_checkpointing(run.model, below.gradient_checkpointing)
    size = run.settings.batch_size * run.settings.grad_accum
    facts = {
        "step": step,
        "rung": f"batch_size {below.batch_size}, gradient_checkpointing {below.gradient_checkpointing}",
        "batch_size": below.batch_size,
        "grad_accum": math.ceil(size / below.batch_size),
        "gradient_checkpointing": below.gradient_checkpointing,
    }
    run.reporter.event("oom", **facts)
    run.reporter.log(f"Out of memory at step {step} ({reason}): going on with {facts['rung']}; the same rows a step.")


def _what_would_fit(settings: LoopHyperparams) -> str:
    ways = []
    if not settings.frozen_base:
        ways.append("train_scope new" if isinstance(settings, TrainHyperparams) else "training_type lora")
    elif not settings.load_in_4bit:
        ways.append("load_in_4bit true")
    if settings.optimizer == "adamw":
        ways.append("optimizer adamw_8bit")
    if isinstance(settings, TrainHyperparams):
        ways.append("a smaller growth_ratio")
    ways.append(f"seq_len {max(settings.seq_len // 2, 16)}")
    return f"What would need less: {', '.join(ways)}; or a smaller model."


def probe(run: Run, state: LoopState) -> None:
    """Work out the gradients of the longest packs before the first step: who must climb down, does so now.

    The room that the optimiser's state will take is held meanwhile. Leaves the random numbers as they were.
    """
    if run.device.type == "cpu":
        return  # there it would cost a step's time, and the kernel seldom refuses memory anyway
    random_states = devices.rng_state(run.device)
    learning = sum(parameter.numel() for parameter in optimizers.trained_parameters(run.model).values())
    later = 0 if run.optimizer.state else optimizers.STATE_BYTES[run.settings.optimizer] * learning
    held: torch.Tensor | None = None
    while True:
        try:
            held = torch.empty(later, dtype=torch.uint8, device=run.device)
            batch = run.objective.collate(run.corpus.training.longest(state.rung.batch_size))
            run.objective.summed(batch).backward()
            break
        except Exception as error:
            if not ladder.is_out_of_memory(error):
                raise
            reason = ladder.reason(error)
        held = None
        run.optimizer.zero_grad(set_to_none=True)
        devices.free_memory(run.device)
        climb_down(run, state, state.step, reason)
    del held
    run.optimizer.zero_grad(set_to_none=True)
    devices.set_rng_state(run.device, random_states)
