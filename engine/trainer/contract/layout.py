"""Which layers lose what: an equal share of every layer, a share of the least needed ones, or whole layers.

The rule: how much goes is arithmetic (`engine.plans.contraction`); which of it goes is decided on the model's own text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.errors import Unsupported
from engine.jobs.hyperparams import ContractHyperparams
from engine.plans import contraction, model_shape
from engine.plans.growth import SUPPORTED
from engine.plans.model_shape import Shape
from engine.trainer.contract import obs, sweep
from engine.trainer.contract.targeted import widths_of
from engine.trainer.grow import diagnose

# The first layers and the last are those that a model can spare least (ShortGPT, arXiv 2403.03853, figure 2).
FIRST, LAST = 4, 2


@dataclass(frozen=True)
class Layout:
    """What goes: `counts[l]` neurons of layer l, from 0; or the whole layers `gone`. `scores[l]` is what it was chosen
    by, where there was a choice: the damage or the influence of each layer."""

    counts: tuple[int, ...]
    gone: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def processed(self) -> list[int]:
        """The layers that lose something."""
        return list(self.gone) or [number for number, count in enumerate(self.counts) if count]


def shape_of(model: Any) -> Shape:
    """Return the shape of a model; of one whose layers differ, with the mean width of its MLPs. Raises ShapeUnknown."""
    return model_shape.of_config(model.config.to_dict())


def check(model: Any, settings: ContractHyperparams) -> None:
    """Raise Unsupported, with what can be, where `model` cannot be contracted so."""
    kind = model.config.get_text_config().model_type
    if kind not in SUPPORTED:
        raise Unsupported(
            f"A model of the type '{kind}' cannot be contracted yet. These can: {', '.join(SUPPORTED)}. "
            "A finetune job adapts any of them."
        )
    widths, asked, ratio = widths_of(model), settings.num_layers_to_contract, settings.contraction_ratio
    layers = len(widths)
    if asked > layers:
        raise Unsupported(
            f"num_layers_to_contract: the model has {layers} layers, not {asked}. Ask for {layers} at most."
        )
    if settings.layout == "uniform" and len(set(widths)) > 1:
        raise Unsupported(
            "layout uniform: the layers of this model differ in width already. Use layout targeted or depth."
        )
    if settings.layout == "depth" and contraction.layers_removed(shape_of(model), ratio, asked) >= layers:
        raise Unsupported(
            f"layout depth: {ratio:g} of {asked} layers' neurons are as many weights as all {layers} layers. "
            "Lower contraction_ratio or num_layers_to_contract, or use layout uniform."
        )


def least(scores: Sequence[float], wanted: int) -> tuple[int, ...]:
    """Return the `wanted` layers with the lowest scores, in order; the first and the last ones only where the others
    are too few."""
    inner = range(FIRST, len(scores) - LAST)
    ranked = sorted(range(len(scores)), key=lambda number: (number not in inner, scores[number]))
    return tuple(sorted(ranked[:wanted]))


def uniform(model: Any, settings: ContractHyperparams) -> Layout:
    """Return the layout that takes as many neurons as asked, the same number from every layer; one step at least."""
    old = widths_of(model)
    shape, step = shape_of(model), contraction.MULTIPLE
    width = contraction.uniform_width(shape, settings.contraction_ratio, settings.num_layers_to_contract)
    # Of a toy's few neurons, one or none may be what rounding leaves.
    most = (old[0] - 1) // step * step or old[0] - 1
    width = max(1, min(max(width, step), most))
    return Layout(tuple(old[0] - width for _ in old))


def targeted(
    model: Any,
    settings: ContractHyperparams,
    sequences: Sequence[Sequence[int]],
    device: torch.device,
    tell: Callable[[int], object] = lambda layer: None,
) -> Layout:
    """Return the layout that takes the asked share of the layers where that would do least damage.

    Each layer is judged in the whole model, on what would be lost of what leaves it: its stream, not its MLP alone,
    for an MLP that hardly speaks can lose all it says. `tell` hears of each layer before it is judged.
    """
    counts = [round(settings.contraction_ratio * width) for width in widths_of(model)]
    counts = [min(max(count, 1), width - 1) for count, width in zip(counts, widths_of(model), strict=True)]
    asked = settings.num_layers_to_contract
    if asked == len(counts):
        return Layout(tuple(counts))
    scores = damages(model, sequences, counts, device, tell)
    chosen = least(scores, asked)
    return Layout(tuple(count if n in chosen else 0 for n, count in enumerate(counts)), scores=tuple(scores))


@torch.no_grad()
def damages(
    model: Any,
    sequences: Sequence[Sequence[int]],
    counts: Sequence[int],
    device: torch.device,
    tell: Callable[[int], object] = lambda layer: None,
) -> list[float]:
    """Return for each layer of the model as it is what removing `counts[l]` neurons would cost: the mean square of
    what is lost after repair, over the mean square of what leaves the layer."""
    training = model.training
    model.eval()
    hidden, others = sweep.entrances(model, torch.tensor([list(one) for one in sequences], device=device))
    found = []
    with closing(sweep.layer_by_layer(model, device)) as layers:
        for number, layer in layers:
            tell(number)
            seen = sweep.look(layer, hidden, others[number])
            down, gram = sweep.surgical(layer.mlp.down_proj, seen.gram)
            lost = obs.remove(down, gram, counts[number]).damage * obs.power(down, gram)
            hidden = seen.out
            found.append(lost / max(float(hidden.float().square().sum(-1).mean()), 1e-30))
    model.train(training)
    return found


def depth(
    model: Any, settings: ContractHyperparams, sequences: Sequence[Sequence[int]], device: torch.device
) -> Layout:
    """Return the layout that takes whole layers, those with the least influence, of about as many parameters."""
    wanted = contraction.layers_removed(shape_of(model), settings.contraction_ratio, settings.num_layers_to_contract)
    model.requires_grad_(False)
    scores = tuple(one.influence for one in diagnose.scores(model, sequences, device))
    return Layout(tuple(0 for _ in scores), gone=least(scores, wanted), scores=scores)


def remove_layers(model: Any, gone: Sequence[int]) -> None:
    """Take whole layers out of a model, in place; those behind them move up."""
    decoder, config = model.get_decoder(), model.config.get_text_config()
    kept = [number for number in range(len(decoder.layers)) if number not in set(gone)]
    layers = [decoder.layers[number] for number in kept]
    for number, layer in enumerate(layers):
        layer.self_attn.layer_idx = number
    decoder.layers = nn.ModuleList(layers)
    types = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(kept)
    if types is not None:
        config.layer_types = [types[number] for number in kept]
