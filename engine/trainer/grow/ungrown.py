"""What training the ungrown model on the same rows would have brought: the comparison that growth has to win.

The rule: it is a run like any other, resumed like any other, that publishes no model and moves no step of the job; it
is done before the growth, so that both are never in memory together.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from engine import atomic
from engine.jobs.hyperparams import FinetuneHyperparams, TrainHyperparams
from engine.order import CHECKPOINTS, Order
from engine.plans.recommend import LEAST_ROWS, ModelSize, learning_rate
from engine.trainer import device as devices
from engine.trainer import evaluate, loop, lora, models, optimizer, preparing
from engine.trainer.grow.retention import documents
from engine.trainer.phases import Phase
from engine.trainer.preparing import Prepared
from engine.trainer.reporter import Reporter
from engine.trainer.run import Run, StopFlag

FOLDER = "ungrown"
PHASES = {"train": "ungrown", "eval": "ungrown_eval"}
RANKS = (1, 1024)


class Aside(Reporter):
    """Tells of a comparison what is worth a curve, a line and a mark, and nothing that would move the job itself."""

    def __init__(self, reporter: Reporter, steps: int) -> None:
        self._reporter = reporter
        self._steps = steps

    def state(self, to: str, activity: str = "") -> None:
        """A comparison is part of one state."""

    def activity(self, text: str, *, done: float | None = None, eta_s: float | None = None) -> None:
        """What is done now, as part of the comparison."""
        self._reporter.activity(f"comparison without growth: {text}")

    def points(self, points: list[dict[str, Any]]) -> None:
        """Points under names of their own."""
        self._reporter.points([point | {"phase": PHASES[point["phase"]]} for point in points])
        self.activity(f"step {points[-1]['step']:,} of {self._steps:,}")

    def log(self, text: str, stream: str = "train") -> None:
        """A line that says where it comes from."""
        self._reporter.log(f"Comparison without growth: {text}", stream)

    def event(self, kind: str, **payload: Any) -> None:
        """A mark that says where it comes from."""
        self._reporter.event(kind, **payload, of=FOLDER)

    def resume(self, step: int) -> None:
        """The job's own steps stay as they are."""

    def checkpoint(self, path: Path, facts: dict[str, Any], size: int) -> None:
        """Its checkpoints are nobody's to load."""

    def checkpoint_gone(self, step: int, state: str, **payload: Any) -> None:
        """Nor does anyone miss them."""


def forget(order: Order) -> None:
    """Remove the checkpoints of a comparison that is done: they hold a whole model with its optimiser's state."""
    for root in order.checkpoint_roots:
        atomic.remove_tree(Path(root).parent / FOLDER)


def settings_of(settings: TrainHyperparams, model: Any, added: int) -> FinetuneHyperparams:
    """Return the comparison's settings: the same rows and steps, every weight at its recommended rate; where the base
    is held in 4 bits, adapters with as many weights as the growth adds."""
    config = model.config.get_text_config()
    size = ModelSize(model.num_parameters(), config.hidden_size, config.model_type)
    full = not settings.load_in_4bit
    shared = settings.model_dump(include=set(FinetuneHyperparams.model_fields) & set(TrainHyperparams.model_fields))
    changed: dict[str, Any] = {
        "steps": settings.total_steps,
        "training_type": "full" if full else "lora",
        "lr": learning_rate(size, LEAST_ROWS, full=full),
        "early_stopping_patience": 0,
        "eval_steps": settings.eval_interval,
    }
    if not full:
        least, most = RANKS
        per_rank = sum(each.in_features + each.out_features for each in _adapted(model))
        changed |= {"lora_rank": min(max(round(added / per_rank), least), most)}
        changed |= {"lora_alpha": float(changed["lora_rank"])}
    return FinetuneHyperparams.model_validate(shared | changed)


def _adapted(model: Any) -> list[Any]:
    return [module for module in model.get_decoder().layers.modules() if hasattr(module, "in_features")]


def compare(
    order: Order,
    settings: FinetuneHyperparams,
    ready: Prepared,
    own: list[list[int]],
    *,
    reporter: Reporter,
    stop: StopFlag,
) -> Phase:
    """Train the ungrown model; return its perplexities on the held-out rows and on `own`, the original's text."""
    aside = Aside(reporter, settings.steps)
    model = preparing.load(order, settings, aside, ready.device)
    if settings.training_type == "lora":
        model = lora.add_adapters(model, settings).to(ready.device)
    objective = preparing.objective(model, ready, settings, aside)
    folders = [Path(root).parent / FOLDER for root in order.checkpoint_roots]
    atomic.make_folder(folders[0])
    run = Run(
        objective=objective,
        optimizer=optimizer.make(model, settings, ready.device),
        corpus=ready.corpus,
        settings=settings,
        roots=tuple(folder / CHECKPOINTS for folder in folders),
        keep_checkpoints=2,
        reporter=aside,
        stop=stop,
        aside=True,
    )
    torch.manual_seed(settings.seed)
    state = loop.train(run, loop.resume(run))
    facts = {
        "ungrown_training_type": settings.training_type,
        "ungrown_lr": settings.lr,
        "ungrown_ppl_final": math.exp(state.eval_loss or 0.0),
        "ungrown_self_ppl_final": math.exp(evaluate.mean_loss(objective, documents(own), 1)),
        "ungrown_seconds": state.seconds,
    }
    run.optimizer.state.clear()
    models.release(model)
    devices.free_memory(ready.device)
    return Phase(facts)
