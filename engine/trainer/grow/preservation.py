"""What growth changed before anything learned: the original beside the grown model as it will be saved, in fp32.

The rule: measured layer by layer, with two layers in fp32 at a time, so that a model that only fits in 4 bits can be
measured too. The new neurons stand among the old ones here, as they do in the file, not beside them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from engine.errors import EngineError
from engine.trainer.contract.sweep import entrances, through
from engine.trainer.grow.operators import Grown, in_fp32
from engine.trainer.models import dense

ABORT_ABOVE = 1e-4
SEQUENCES, LENGTH = 8, 256
ROWS = 256  # tokens whose logits are there at a time


@dataclass(frozen=True)
class Preservation:
    """`change`: the largest change of a logit over the largest logit; `kl`: mean divergence per token in nats;
    `agreement`: share of the tokens whose likeliest successor stayed."""

    change: float
    kl: float
    agreement: float

    def check(self) -> None:
        """Raise EngineError where the growth was not the silent one that it has to be."""
        if not self.change <= ABORT_ABOVE:  # also what is no number
            raise EngineError(
                f"Growing changed the model's answers: its logits moved by {self.change:.1e} of their size, more than "
                f"{ABORT_ABOVE:g}. Nothing was trained. Set growth_shape to depth, which adds whole layers only."
            )


@torch.no_grad()
def measure(grown: Grown, ids: torch.Tensor) -> Preservation:
    """Return how far the grown model's logits on token ids [n, s] are from the original's."""
    model, config = grown.model, grown.model.config.get_text_config()
    training = model.training
    model.eval()
    with grown.original():
        hidden, others_of = entrances(model, ids)
    before = after = hidden.float()
    old = iter(others_of)
    others: dict[str, Any] = {}
    for layer in model.get_decoder().layers:
        if not grown.is_new(layer):  # what is new is of the kind of the old layer before it
            others = _in_fp32(next(old))
            before = through(in_fp32(layer, config, with_new=False), before, others)
        after = through(in_fp32(layer, config), after, others)
    model.train(training)
    return _compared(model, before, after)


def _in_fp32(others: dict[str, Any]) -> dict[str, Any]:
    """Return a layer's other inputs with the numbers among them in fp32: masks and rotations were made in 16 bits."""

    def lifted(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(lifted(part) for part in value)
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return {key: lifted(value) for key, value in others.items()}


def _logits(model: Any, *streams: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Yield the logits [n, V] of some tokens at a time for each stream of hidden states, by one head in fp32."""
    norm = copy.deepcopy(model.get_decoder().norm).float()
    head = model.get_output_embeddings()
    weight = dense(head).float()
    bias = None if head.bias is None else head.bias.float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    for parts in zip(*(norm(stream).flatten(0, 1).split(ROWS) for stream in streams), strict=True):
        found = [functional.linear(rows, weight, bias) for rows in parts]
        yield [cap * torch.tanh(logits / cap) for logits in found] if cap else found


def _compared(model: Any, before: torch.Tensor, after: torch.Tensor) -> Preservation:
    moved, largest, divergence, agreeing = torch.zeros(4, device=before.device)
    for theirs, ours in _logits(model, before, after):
        # torch's own maximum, for Python's loses what is no number.
        moved = torch.maximum(moved, (ours - theirs).abs().max())
        largest = torch.maximum(largest, theirs.abs().max())
        a, b = ours.log_softmax(1), theirs.log_softmax(1)
        divergence = divergence + (b.exp() * (b - a)).sum()
        agreeing = agreeing + (ours.argmax(1) == theirs.argmax(1)).sum()
    tokens = before.shape[0] * before.shape[1]
    return Preservation(float(moved / largest), max(float(divergence) / tokens, 0.0), float(agreeing) / tokens)


def probe(documents: Iterator[list[int]], length: int) -> torch.Tensor:
    """Return up to 8 sequences of `length` tokens, at most 256, from documents laid end to end; int64 [n, s]."""
    length, flat = min(length, LENGTH), []
    for ids in documents:
        flat += ids
        if len(flat) >= SEQUENCES * length:
            break
    rows = max(len(flat) // length, 1)
    size = min(length, len(flat))
    return torch.tensor(flat[: rows * size][: SEQUENCES * length]).view(-1, size)
