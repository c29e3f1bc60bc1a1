"""Growing a decoder so that its output stays what it was: identity blocks for depth, silent neurons for width.

The rule: what is old is never written to. New tensors stand beside the old ones until `fold` makes one stock model of
both, so the old ones may be frozen, or held in 4 bits, and the model before the growth is the same network with the
new parts bypassed.

Identity blocks: LLaMA Pro (Wu et al. 2024, arXiv 2401.02415). Neither operator splits or copies a neuron that goes on
speaking (Net2Net): twins have the same gradients and stay twins under AdamW.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.errors import Unsupported
from engine.plans.growth import SUPPORTED, Room
from engine.trainer import device as devices
from engine.trainer.models import dense

# Their blocks end in a norm, which would raise a small output to full size at once: its gain is zeroed in place.
POST_NORMED = ("gemma2", "gemma3_text")
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
NOISE = 0.2  # of the standard deviation of the row that a new neuron begins from


@dataclass(frozen=True)
class Growth:
    """What is added: a block behind each of the old layers in `blocks` (numbers from 0, repeats allowed), and `units`
    neurons in every MLP."""

    blocks: tuple[int, ...] = ()
    units: int = 0


class WideMLP(nn.Module):
    """A gated MLP with new neurons beside the old ones; `bypassed`, it is the old one."""

    def __init__(self, old: Any, units: int, generator: torch.Generator) -> None:
        super().__init__()
        gate, up, down = (dense(getattr(old, name)).float() for name in ("gate_proj", "up_proj", "down_proj"))
        chosen = torch.randperm(gate.shape[0], generator=generator).repeat(-(-units // gate.shape[0]))[:units]
        self.old = old
        self.gate_proj = _beside(old.gate_proj, _noisy(gate, chosen, generator), chosen)
        self.up_proj = _beside(old.up_proj, _noisy(up, chosen, generator), chosen)
        self.down_proj = nn.Linear(units, down.shape[0], bias=False, device=down.device)
        nn.init.zeros_(self.down_proj.weight)
        self.bypassed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both, [..., h]."""
        y: torch.Tensor = self.old(x)
        if self.bypassed:
            return y
        return y + self.down_proj(self.old.act_fn(self.gate_proj(x)) * self.up_proj(x)).to(y.dtype)

    def joined(self, name: str, key: str, *, with_new: bool = True) -> torch.Tensor:
        """Return weight or bias of a projection with the new neurons' behind the old ones', in the old dtype."""
        old = getattr(self.old, name)
        value = dense(old) if key == "weight" else getattr(old, key).detach()
        if not with_new or (key == "bias" and name == "down_proj"):
            return value
        new = getattr(getattr(self, name), key).detach().to(value)
        return torch.cat([value, new], 1 if name == "down_proj" else 0)

    def folded(self) -> Any:
        """Return the old MLP with the new neurons among its own."""
        for name in ("gate_proj", "up_proj", "down_proj"):
            weight, biased = self.joined(name, "weight"), getattr(self.old, name).bias is not None
            one = nn.Linear(weight.shape[1], weight.shape[0], bias=biased, device="meta")
            one.weight = nn.Parameter(weight, requires_grad=False)
            if biased:
                one.bias = nn.Parameter(self.joined(name, "bias"), requires_grad=False)
            setattr(self.old, name, one)
        return self.old


def _noisy(rows: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return copies of the chosen rows [units, h] with noise of their own size."""
    picked = rows[chosen.to(rows.device)]
    noise = torch.randn(picked.shape, generator=generator).to(picked)
    return picked + NOISE * picked.std(1, keepdim=True) * noise


def _beside(old: nn.Linear, weight: torch.Tensor, chosen: torch.Tensor) -> nn.Linear:
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=old.bias is not None, device=weight.device)
    new.weight = nn.Parameter(weight)
    if old.bias is not None:
        new.bias = nn.Parameter(old.bias.detach().float()[chosen.to(old.bias.device)])
    return new


class Grown:
    """A model while it grows: the model itself, which of its parts are new, and the way back and forth."""

    def __init__(self, model: Any, growth: Growth, *, seed: int) -> None:
        """Grow `model` in place; its old parameters are frozen, the new ones learn, in fp32. Raises Unsupported."""
        check(model)
        self.model = model
        self.growth = growth
        self._decoder = model.get_decoder()
        self._config = model.config.get_text_config()
        self._old_layers = list(self._decoder.layers)
        model.requires_grad_(False)
        setattr(model, devices.MIXED, True)
        # On the CPU, so that every device grows the same model.
        generator = torch.Generator().manual_seed(seed)
        self._new_blocks: list[nn.Module] = []
        if growth.blocks:
            self._insert_blocks()
        if growth.units:
            for layer in self._old_layers:
                layer.mlp = WideMLP(layer.mlp, growth.units, generator)
            for block in self._new_blocks:
                _widen_new(block.mlp, growth.units, generator)

    def _insert_blocks(self) -> None:
        old = self._old_layers
        behind = [[number] + ["new"] * self.growth.blocks.count(number) for number in range(len(old))]
        order = [place for places in behind for place in places]
        _set_depth(self._config, [old_number(order, n) for n in range(len(order))])
        layers = []
        for number, place in enumerate(order):
            if place == "new":
                before = old[old_number(order, number)]
                block = _identity_block(before, self._config, number)
                self._new_blocks.append(block)
                layers.append(block)
            else:
                layer = old[int(place)]
                layer.self_attn.layer_idx = number
                layers.append(layer)
        self._decoder.layers = nn.ModuleList(layers)

    def is_new(self, layer: Any) -> bool:
        """Say whether a layer of the growing model was added."""
        return any(layer is block for block in self._new_blocks)

    def new_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that were added, by their name in the growing model."""
        ours = {id(p) for block in self._new_blocks for p in block.parameters()}
        for layer in self._old_layers if self.growth.units else ():
            for name in ("gate_proj", "up_proj", "down_proj"):
                ours |= {id(p) for p in getattr(layer.mlp, name).parameters()}
        return {name: p for name, p in self.model.named_parameters() if id(p) in ours}

    @contextmanager
    def original(self) -> Iterator[Any]:
        """Give the model as it was before the growth, for as long as this lasts: the same tensors, no copy."""
        kept, places = self._decoder.layers, [layer.self_attn.layer_idx for layer in self._old_layers]
        types = getattr(self._config, "layer_types", None)
        wide = [layer.mlp for layer in self._old_layers if isinstance(layer.mlp, WideMLP)]
        self._decoder.layers = nn.ModuleList(self._old_layers)
        _set_depth(self._config, places)
        for number, layer in enumerate(self._old_layers):
            layer.self_attn.layer_idx = number
        for mlp in wide:
            mlp.bypassed = True
        try:
            yield self.model
        finally:
            for mlp in wide:
                mlp.bypassed = False
            for layer, place in zip(self._old_layers, places, strict=True):
                layer.self_attn.layer_idx = place
            self._decoder.layers = kept
            self._config.num_hidden_layers = len(kept)
            if types is not None:
                self._config.layer_types = types

    def fold(self) -> Any:
        """Return one stock model of old and new. The growing model is given up."""
        for layer in self._old_layers if self.growth.units else ():
            layer.mlp = layer.mlp.folded()
        if self.growth.units:
            self._config.intermediate_size += self.growth.units
        self.model.requires_grad_(False)
        setattr(self.model, devices.MIXED, False)
        return self.model


def old_number(order: list[Any], number: int) -> int:
    """Return the number of the old layer that stands at `number` or before it."""
    return int(next(place for place in reversed(order[: number + 1]) if place != "new"))


def room(model: Any) -> Room:
    """Return what of a model decides how much it grows by; weights in 4 bits count whole."""
    layers = model.get_decoder().layers
    each = 0
    for module in layers[0].modules():
        for name, parameter in module.named_parameters(recurse=False):
            linear = name == "weight" and hasattr(module, "in_features")
            each += module.in_features * module.out_features if linear else parameter.numel()
    return Room(model.num_parameters(), each, len(layers), model.config.get_text_config().hidden_size)


def check(model: Any) -> None:
    """Raise Unsupported, naming what can be grown, where `model` is none of it."""
    kind = model.config.get_text_config().model_type
    if kind not in SUPPORTED:
        raise Unsupported(
            f"A model of the type '{kind}' cannot be grown yet. These can: {', '.join(SUPPORTED)}. "
            "A finetune job adapts any of them."
        )


def _set_depth(config: Any, chosen: list[int]) -> None:
    """Say in the config that layer n is like the present layer `chosen[n]`."""
    types = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(chosen)
    if types is not None:
        config.layer_types = [types[number] for number in chosen]


def in_fp32(layer: Any, config: Any, *, with_new: bool = True) -> Any:
    """Return a copy of a layer in fp32 as stock code has it: new neurons among the old ones, or left out."""
    old, wide = dict(layer.named_modules()), layer.mlp if isinstance(layer.mlp, WideMLP) else None
    width = layer.mlp.old.down_proj.in_features if wide else layer.mlp.down_proj.in_features
    plain = copy.copy(config)
    plain.intermediate_size = width + (wide.down_proj.in_features if wide and with_new else 0)
    with torch.device(next(layer.parameters()).device):
        made = type(layer)(plain, layer.self_attn.layer_idx)
    made.float()
    for name, module in made.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if wide and name.startswith("mlp."):
                value = wide.joined(name.removeprefix("mlp."), key, with_new=with_new)
            else:
                value = dense(old[name]) if key == "weight" else getattr(old[name], key)
            with torch.no_grad():
                parameter.copy_(value)
    return made.train(layer.training)


def _identity_block(before: Any, config: Any, number: int) -> Any:
    """Return a block like `before`, in fp32, that gives what it is given: y = x + 0, bit for bit."""
    block = in_fp32(before, config)
    block.self_attn.layer_idx = number
    for module in block.modules():
        if hasattr(module, "config"):
            # The model's own, not a copy: how attention is worked out is set there later, for all layers alike.
            module.config = config
    with torch.no_grad():
        if config.model_type in POST_NORMED:
            for norm in POST_NORMS:
                getattr(block, norm).weight.fill_(-1.0)  # their gain is 1 + weight
        else:
            for layer in (block.self_attn.o_proj, block.mlp.down_proj):
                for parameter in layer.parameters():
                    parameter.zero_()
    return block


def _widen_new(mlp: Any, units: int, generator: torch.Generator) -> None:
    """Give a new block's MLP the width that the old ones will have when they are folded."""
    wide = WideMLP(mlp, units, generator)
    wide.folded()
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(mlp, name).requires_grad_(True)
