"""A run in the worker: what the loop works with, and the ways in which it ends early."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine import process
from engine.jobs.hyperparams import LoopHyperparams
from engine.trainer.checkpoint import LoopState
from engine.trainer.data.corpora import Corpus
from engine.trainer.objective import Objective
from engine.trainer.reporter import Reporter


class StopFlag:
    """Set by the first TERM or INT; the loop finishes its step and saves. A second signal ends the process.

    `save_requested` is set by SAVE: the loop saves at the end of its step and goes on.
    """

    def __init__(self) -> None:
        self.requested = False
        self.save_requested = False

    def install(self) -> None:
        """Take over the signals of this process; a hang-up of some terminal is nothing to a worker."""
        signal.signal(process.SAVE, self._on_save)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {process.SAVE})  # one that came before is heard now
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_save(self, number: int, frame: object) -> None:
        self.save_requested = True

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
    """What the loop works with. `roots` are the checkpoint directories, this attempt's own first.

    `penalty`: what is minimised beside the loss, for the number of a step. `on_cycle` hears of the end of a cycle.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    corpus: Corpus
    settings: LoopHyperparams
    roots: tuple[Path, ...]
    keep_checkpoints: int
    reporter: Reporter
    stop: StopFlag
    penalty: Callable[[int], torch.Tensor] | None = None
    on_cycle: Callable[[LoopState], None] | None = None
    aside: bool = False  # not the job's own training, of which alone its user may ask for a checkpoint

    @property
    def model(self) -> Any:
        """The model that is trained, adapters included."""
        return self.objective.model

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.objective.device


def outcome_of(run: Run, state: LoopState) -> dict[str, Any]:
    """Return what the result of every job that trains on rows says of its training, in the fields of the dialect."""
    before, after = math.exp(state.baseline_loss or 0.0), math.exp(state.eval_loss or 0.0)
    return {
        "ppl_baseline": before,
        "ppl_final": after,
        "ppl_delta_pct": 100 * (after - before) / before,
        "loss_final": state.train_loss,
        # The lowest that was measured once something had been learned; exp of the loss at the end is ppl_final.
        "eval_loss_best": min((loss for step, loss in state.curve if step), default=state.eval_loss),
        "gpu_seconds": state.seconds,
        "tokens_processed": state.tokens,
        "steps": state.step,
        "skipped_steps": state.skipped,
        "truncated_rows": run.corpus.truncated_rows,
        "dropped_rows": run.corpus.dropped_rows,
        "rows_trained": run.corpus.training_rows,
        "rows_held_out": len(run.corpus.validation_rows),
        **state.samples,
    }
