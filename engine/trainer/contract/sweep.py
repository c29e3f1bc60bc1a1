"""From the first layer to the last: what goes in, how its neurons speak, which go, and on with what is left.

The rule: one layer's statistics are held at a time, and each layer is judged and repaired on what the layers before it,
already contracted, hand to it. All sequences have one length, so each layer's other inputs are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from engine.trainer.contract import obs
from engine.trainer.contract.obs import Remaining
from engine.trainer.models import dense

BATCH = 8  # sequences at a time


class _Seen(Exception):
    """Ends a forward pass of which enough was seen."""


@torch.no_grad()
def entrances(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Return what enters the first layer [n, s, h] for token ids [n, s], and the other inputs of each layer."""
    layers = list(model.get_decoder().layers)
    others: list[dict[str, Any]] = []
    first: list[torch.Tensor] = []

    def note(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        others.append({key: value for key, value in named.items() if key != "hidden_states"})

    def stop(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        first.append(given[0] if given else named["hidden_states"])
        raise _Seen

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    model(input_ids=ids[:1], use_cache=False)
    for hook in hooks:
        hook.remove()
    entry = layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    for begin in range(0, len(ids), BATCH):
        try:
            model(input_ids=ids[begin : begin + BATCH], use_cache=False)
        except _Seen:
            pass
    entry.remove()
    return torch.cat(first), others


@torch.no_grad()
def through(layer: Any, hidden: torch.Tensor, others: dict[str, Any]) -> torch.Tensor:
    """Return what leaves a layer [n, s, h] for what enters it."""
    out = []
    for begin in range(0, len(hidden), BATCH):
        found = layer(hidden[begin : begin + BATCH], **others)
        out.append(found[0] if isinstance(found, tuple) else found)
    return torch.cat(out)


@torch.no_grad()
def gram(layer: Any, hidden: torch.Tensor, others: dict[str, Any]) -> torch.Tensor:
    """Return E[a aᵀ] [f, f] of a layer's MLP neurons over all tokens, in fp32."""
    down = layer.mlp.down_proj
    total = torch.zeros(down.in_features, down.in_features, device=hidden.device)

    def add(module: Any, given: tuple[Any, ...], out: Any) -> None:
        activations = given[0].flatten(0, -2).float()
        total.addmm_(activations.t(), activations)

    hook = down.register_forward_hook(add)
    through(layer, hidden, others)
    hook.remove()
    return total / (hidden.shape[0] * hidden.shape[1])


def keep_neurons(mlp: Any, found: Remaining) -> None:
    """Leave in an MLP the neurons that stay, with its repaired down projection."""
    for name in ("gate_proj", "up_proj"):
        old = getattr(mlp, name)
        bias = None if old.bias is None else old.bias[found.kept]
        setattr(mlp, name, _linear(dense(old)[found.kept], bias))
    mlp.down_proj = _linear(found.down.to(dense(mlp.down_proj).dtype), mlp.down_proj.bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def contract(
    model: Any,
    sequences: Sequence[Sequence[int]],
    counts: Sequence[int],
    device: torch.device,
    tell: Callable[[int, float], object] = lambda layer, damage: None,
) -> list[float]:
    """Remove `counts[l]` neurons from layer l of `model`, in place; return each layer's damage (0 where none went).

    `tell` hears of each layer when it is done.
    """
    training = model.training
    model.eval()
    hidden, others = entrances(model, torch.tensor([list(one) for one in sequences], device=device))
    damages = []
    for number, layer in enumerate(model.get_decoder().layers):
        damage = 0.0
        if counts[number]:
            found = obs.remove(dense(layer.mlp.down_proj), gram(layer, hidden, others[number]), counts[number])
            keep_neurons(layer.mlp, found)
            damage = found.damage
        hidden = through(layer, hidden, others[number])
        damages.append(damage)
        tell(number, damage)
    model.train(training)
    return damages
