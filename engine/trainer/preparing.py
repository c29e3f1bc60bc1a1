"""What every job that trains begins with: its device, its tokenizer, its rows, and a model on the device.

The rule: the dataset is read before the model is loaded, so that a bad row costs nobody the card.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.jobs.hyperparams import LoopHyperparams
from engine.order import Order
from engine.trainer import device as devices
from engine.trainer import kernels, models
from engine.trainer.data import corpora, sources
from engine.trainer.data.corpora import Corpus
from engine.trainer.objective import FLAT, Objective
from engine.trainer.optimizer import trained_parameters
from engine.trainer.reporter import Reporter


@dataclass(frozen=True)
class Prepared:
    """Device, tokenizer and rows of a job."""

    device: torch.device
    tokenizer: Any
    corpus: Corpus


def read(order: Order, settings: LoopHyperparams, reporter: Reporter) -> Prepared:
    """Choose the device and read the rows. Raises what reading raises: RowError, ValueError, RuntimeError."""
    if settings.deterministic:
        devices.be_deterministic()
    device = devices.select(order.device)
    tokenizer = models.load_tokenizer(Path(order.model_path))
    if models.ensure_chat_template(tokenizer):
        reporter.log(f"{order.model_name} has no chat template; ChatML is used and saved with the model.")
    reporter.state("staging", "reading the dataset")
    corpus = corpora.load(sources.of_order(order), tokenizer, settings, tell=reporter.activity, log=reporter.log)
    for notice in corpus.notices:
        reporter.log(notice)
    return Prepared(device, tokenizer, corpus)


def load(order: Order, settings: LoopHyperparams, reporter: Reporter, device: torch.device) -> Any:
    """Load the order's model onto the device, as the settings want it held. Raises what loading raises."""
    reporter.activity("loading the model")
    folder = Path(order.model_path)
    torch.manual_seed(settings.seed)
    if not settings.frozen_base:
        # Weights that learn are kept in fp32: 16 bits have too few digits for small updates to add up.
        model = models.load_model(folder, torch.float32).to(device)
    elif settings.load_in_4bit:
        # The type of what is not in 4 bits: those round far more away than it does.
        model = models.load_4bit(folder, devices.compute_dtype(device), device)
    else:
        model = models.load_frozen(folder, device)
    told = kernels.liger(model, device)
    if told:
        reporter.log(told)
    return model


def objective(model: Any, ready: Prepared, settings: LoopHyperparams, reporter: Reporter) -> Objective:
    """Return what is minimised, and say how the model is held and trained."""
    learning = sum(parameter.numel() for parameter in trained_parameters(model).values())
    held = "4 bits" if settings.load_in_4bit else str(model.dtype).removeprefix("torch.")
    reporter.log(f"{learning:,} parameters learn; the model is held in {held} on {ready.device}.")
    made = Objective.of(model, ready.device, ready.corpus.pad, ready.corpus.validation[0], noise=settings.neftune_alpha)
    if settings.torch_compile:
        reporter.log(kernels.compile_layers(model))
    if made.layout != FLAT or not made.direct:
        reporter.log("This architecture is trained through its own forward pass: right, but slower than others.")
    return made
