"""Where a model should grow: three scores of each layer, measured on rows of the dataset.

The rule: the scores are data (they are reported and drawn), and the places follow from them and from nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

FIRST_SHARE = 1 / 3  # of the layers, which get no block: blocks in the upper ones serve best (LLaMA Pro's ablation)


@dataclass(frozen=True)
class LayerScore:
    """One layer, from 0.

    `influence`: 1 − cos between what goes in and what comes out, mean over tokens (ShortGPT: Men et al. 2024, arXiv
    2403.03853). `gradient`: root mean square, over the weights of its two outward maps, of the loss's gradient: what
    new neurons in its place would be told at first. `utilisation`: participation ratio of its MLP neurons' mean
    squares, 1 where all do the same work. `score`: mean of the three ranks, 0 to 1.
    """

    layer: int
    influence: float
    gradient: float
    utilisation: float
    score: float

    def document(self) -> dict[str, Any]:
        """Return the score as JSON holds it."""
        return asdict(self)


class _Watch:
    """Hooks on one layer, adding up over the tokens that pass."""

    def __init__(self, layer: Any) -> None:
        self.cosine, self.tokens = 0.0, 0
        self.squares: torch.Tensor | None = None
        self.gradient, self.weights = 0.0, 0
        self._handles = [layer.register_forward_hook(self._passed, with_kwargs=True)]
        for outward in (layer.self_attn.o_proj, layer.mlp.down_proj):
            self.weights += outward.in_features * outward.out_features
            self._handles.append(outward.register_forward_hook(self._went_out))
        self._handles.append(layer.mlp.down_proj.register_forward_hook(self._worked))

    def _passed(self, layer: Any, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        before = given[0] if given else named["hidden_states"]
        after = out[0] if isinstance(out, tuple) else out
        cosine = functional.cosine_similarity(before.detach().float(), after.detach().float(), dim=-1)
        self.cosine += float(cosine.sum())
        self.tokens += cosine.numel()

    def _worked(self, layer: Any, given: tuple[Any, ...], out: torch.Tensor) -> None:
        found = given[0].detach().float().square().flatten(0, -2).sum(0)
        self.squares = found if self.squares is None else self.squares + found

    def _went_out(self, layer: Any, given: tuple[Any, ...], out: torch.Tensor) -> None:
        # The weight's own gradient, worked out here: a frozen weight, or one in 4 bits, is given none.
        inputs = given[0].detach().flatten(0, -2)

        def told(gradient: torch.Tensor) -> None:
            self.gradient += float((gradient.flatten(0, -2).float().t() @ inputs.float()).square().sum())

        out.register_hook(told)

    def end(self) -> tuple[float, float, float]:
        """Take the hooks away; return influence, gradient and utilisation."""
        for handle in self._handles:
            handle.remove()
        squares = self.squares if self.squares is not None else torch.ones(1)
        spread = float(squares.sum() ** 2 / (squares.numel() * squares.square().sum()).clamp_min(1e-30))
        return 1 - self.cosine / max(self.tokens, 1), (self.gradient / self.weights) ** 0.5, spread


def scores(model: Any, sequences: Sequence[Sequence[int]], device: torch.device) -> list[LayerScore]:
    """Return the score of each layer of a frozen decoder on token sequences, read one by one."""
    watches = [_Watch(layer) for layer in model.get_decoder().layers]
    training = model.training
    model.eval()
    for ids in sequences:
        tokens = torch.tensor([list(ids)], device=device)
        # So that gradients flow though no weight learns.
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        model(inputs_embeds=embedded, labels=tokens, use_cache=False).loss.backward()
    model.train(training)
    found = [watch.end() for watch in watches]
    ranks = [_ranks([one[column] for one in found]) for column in range(3)]
    return [LayerScore(number, *one, score=sum(rank[number] for rank in ranks) / 3) for number, one in enumerate(found)]


def _ranks(values: Sequence[float]) -> list[float]:
    """Return each value's place among all, 0 for the least and 1 for the greatest."""
    order = sorted(range(len(values)), key=values.__getitem__)
    places = {number: place for place, number in enumerate(order)}
    return [places[number] / max(len(values) - 1, 1) for number in range(len(values))]


def places(found: Sequence[LayerScore], blocks: int) -> tuple[int, ...]:
    """Return the layers behind which `blocks` new ones stand: spread over the upper two thirds, in each stretch behind
    the layer with the highest score. More blocks than there are layers stand two and more behind one."""
    if not blocks:
        return ()
    upper = list(found[int(FIRST_SHARE * len(found)) :])
    rounds, rest = divmod(blocks, len(upper))
    chosen = [one.layer for one in upper] * rounds
    for number in range(rest):
        stretch = upper[number * len(upper) // rest : (number + 1) * len(upper) // rest]
        chosen.append(max(stretch, key=lambda one: one.score).layer)
    return tuple(sorted(chosen))
