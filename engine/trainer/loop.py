"""The training loop. It reads from top to bottom; every job that trains goes through it.

The rule: what a step does depends on the step's number, the seed and the restored state alone, so a run that was
killed and resumed gives the losses of one that was not, bit for bit on the CPU.
"""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine import atomic
from engine.specs import FinetuneHyperparams
from engine.trainer import checkpoint, evaluate
from engine.trainer import device as devices
from engine.trainer.batch import collate
from engine.trainer.checkpoint import LoopState
from engine.trainer.data import Corpus
from engine.trainer.reporter import Reporter
from engine.trainer.schedule import learning_rate


class StopFlag:
    """Set by the first TERM or INT; the loop finishes its step and saves. A second signal ends the process."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Take over the signals of this process; a hang-up of some terminal is nothing to a worker."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = True


class Stopped(Exception):
    """The loop ended early because it was asked to; its state is saved."""


class Diverged(Exception):
    """The loss is no number any more."""


@dataclass(frozen=True)
class Run:
    """What the loop works with. `roots` are the checkpoint directories, this attempt's own first."""

    model: Any
    optimizer: torch.optim.Optimizer
    corpus: Corpus
    settings: FinetuneHyperparams
    device: torch.device
    roots: tuple[Path, ...]
    keep_checkpoints: int
    reporter: Reporter
    stop: StopFlag


def make_optimizer(model: torch.nn.Module, settings: FinetuneHyperparams, device: torch.device) -> torch.optim.AdamW:
    """Return AdamW over the parameters that learn; norms and biases are not decayed."""
    parameters = checkpoint.trained_parameters(model).values()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.999), fused=device.type in ("cuda", "cpu"))


def train_step(run: Run, step: int) -> tuple[float, float, int]:
    """Do optimiser step number `step`; return (mean loss per target token, gradient norm, tokens without padding)."""
    settings, size = run.settings, run.settings.batch_size * run.settings.grad_accum
    sequences = run.corpus.sequences((step - 1) * size, size, settings.seed)
    starts = range(0, size, settings.batch_size)
    batches = [collate(sequences[start : start + settings.batch_size], run.corpus.pad) for start in starts]
    targets = sum(batch.targets for batch in batches)
    total = 0.0
    for batch in batches:
        # Divided by the targets of the whole step, so that accumulation does not change what is minimised.
        loss = evaluate.summed_loss(run.model, batch, run.device) / targets
        loss.backward()
        total += float(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(
        checkpoint.trained_parameters(run.model).values(), settings.max_grad_norm, error_if_nonfinite=False
    )
    if not math.isfinite(total) or not math.isfinite(float(norm)):
        raise Diverged(
            f"the loss is {total} at step {step}: training diverged. Lower lr (now {settings.lr:g}); "
            "the checkpoints before this step are kept."
        )
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return total, float(norm), sum(batch.tokens for batch in batches)


def save(run: Run, state: LoopState, lr: float) -> None:
    """Publish a checkpoint of `state`, report it, and remove those that need not be kept."""
    run.reporter.state("checkpointing", f"saving step {state.step}")
    # The best of those that are saved, by the newest held-out loss at each: what is not saved cannot be kept.
    if state.eval_loss is not None and (state.best_loss is None or state.eval_loss < state.best_loss):
        state.best_loss, state.best_step = state.eval_loss, state.step
    epoch = state.step * run.settings.batch_size * run.settings.grad_accum / len(run.corpus.training)
    facts = {
        "step": state.step,
        "epoch": round(epoch, 4),
        "loss": state.train_loss,
        "eval_loss": state.eval_loss,
        "lr": lr,
    }
    directory = checkpoint.save(run.roots[0], state, facts, run.model, run.optimizer)
    run.reporter.checkpoint(directory, facts, checkpoint.size_of(directory))
    for step in checkpoint.prune(run.roots, keep=run.keep_checkpoints, best_step=state.best_step):
        run.reporter.checkpoint_gone(step, "removed")
    run.reporter.state("running", "training")


def evaluate_now(run: Run, state: LoopState, activity: str) -> dict[str, Any]:
    """Measure the held-out loss into `state`; return its telemetry point."""
    run.reporter.activity(activity)
    loss = evaluate.mean_loss(run.model, run.corpus.validation_batches(run.settings.batch_size), run.device)
    if not math.isfinite(loss):
        raise Diverged(f"the held-out loss is {loss} at step {state.step}: the model's weights are no use any more.")
    state.eval_loss = loss
    run.reporter.activity("training")
    return {"step": state.step, "phase": "eval", "ts": time.time(), "loss": loss, "tokens": state.tokens}


def train(run: Run, state: LoopState) -> None:
    """Train from `state.step` to the last step, with telemetry, evaluation and checkpoints on the way.

    Raises Stopped after saving, when asked to stop; Diverged; NoSpace.
    """
    settings, begun = run.settings, time.monotonic()
    before, first = state.seconds, state.step
    run.model.train()
    while state.step < settings.steps:
        if run.stop.requested:
            if state.step:
                save(run, state, _rate(settings, state.step))
            raise Stopped
        step = state.step + 1
        rate = _rate(settings, step)
        for group in run.optimizer.param_groups:
            group["lr"] = rate

        started = time.monotonic()
        loss, norm, tokens = train_step(run, step)
        devices.synchronize(run.device)
        elapsed = time.monotonic() - started

        state.step, state.train_loss = step, loss
        state.tokens += tokens
        state.seconds = before + time.monotonic() - begun
        point = {
            "step": step,
            "phase": "train",
            "ts": time.time(),
            "loss": loss,
            "lr": rate,
            "grad_norm": norm,
            "throughput": tokens / elapsed,
            "vram_gb": devices.memory_gb(run.device),
            "tokens": state.tokens,
            "epoch": step * settings.batch_size * settings.grad_accum / len(run.corpus.training),
            "step_s": elapsed,
        }
        points = [point]
        if step % settings.eval_interval == 0 or step == settings.steps:
            # Before the step's own point, so that who asks for "newer than this step" has both or neither.
            points.insert(0, evaluate_now(run, state, f"evaluating at step {step}"))
        # Saves and evaluations are part of what is left, so the estimate is over the wall clock.
        point["eta_s"] = (time.monotonic() - begun) / (step - first) * (settings.steps - step)
        run.reporter.points(points)
        if step % settings.save_steps == 0 or step == settings.steps:
            save(run, state, rate)
    state.seconds = before + time.monotonic() - begun


def _rate(settings: FinetuneHyperparams, step: int) -> float:
    return learning_rate(
        step,
        steps=settings.steps,
        peak=settings.lr,
        shape=settings.lr_scheduler,
        warmup_ratio=settings.warmup_ratio,
    )


def resume(run: Run) -> LoopState:
    """Restore the newest good checkpoint and say so; a fresh state where there is none."""

    def on_damage(directory: Path, damage: Exception) -> None:
        run.reporter.checkpoint_gone(checkpoint.step_of(Path(directory.stem)), "quarantined", why=str(damage))
        run.reporter.log(f"Checkpoint {damage}; set aside as {directory.name}, trying the one before.", "error")

    directory = checkpoint.newest_good(run.roots, on_damage)
    # Stages of an attempt that died while it saved are of no use to anyone.
    for root in run.roots:
        for stage in root.glob(".stage-*"):
            atomic.remove_tree(stage)
    if directory is None:
        run.reporter.resume(0)
        return LoopState()
    state = checkpoint.restore(directory, run.model, run.optimizer)
    run.reporter.resume(state.step)
    run.reporter.log(f"Resumed from the checkpoint of step {state.step}.")
    return state
