"""From layer to layer: what is seen is what goes through, what is repaired is nearer, what is known is not redone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from engine.trainer.contract import obs, sweep
from engine.trainer.contract.obs import Remaining
from tests.trainer import families
from tests.trainer.contract.test_layout import CPU, distance, make, sequences


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3"])
def test_layer_by_layer_the_model_gives_what_it_gives_whole(family: str) -> None:
    model = make(family)
    ids = torch.tensor(sequences(10))
    hidden, others = sweep.entrances(model, ids)
    for number, layer in enumerate(model.get_decoder().layers):
        hidden = sweep.look(layer, hidden, others[number]).out
    with torch.no_grad():
        whole = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    assert torch.allclose(model.get_decoder().norm(hidden), whole, atol=1e-4)


def test_what_is_seen_of_a_layer_is_the_mean_over_all_its_tokens() -> None:
    model = make("llama")
    hidden, others = sweep.entrances(model, torch.tensor(sequences(10)))
    layer = model.model.layers[0]
    given: list[torch.Tensor] = []
    layer.mlp.down_proj.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].flatten(0, 1)))
    seen = sweep.look(layer, hidden, others[0])
    activations = torch.cat(given)
    assert activations.shape == (10 * 24, 64)
    assert torch.allclose(seen.gram, activations.t() @ activations / len(activations), atol=1e-5)


def contracted(model: Any, **changes: Any) -> Any:
    changed = copy.deepcopy(model)
    sweep.contract(changed, sequences(40), [24] * len(model.model.layers), CPU, **changes)
    return changed


def test_each_layer_is_repaired_on_what_the_whole_model_hands_to_it() -> None:
    model = make("llama", 6)
    found: dict[int, Remaining] = {}
    contracted(model, tell=found.__setitem__)
    hidden, others = sweep.entrances(model, torch.tensor(sequences(40)))
    for number, layer in enumerate(model.model.layers):
        seen = sweep.look(layer, hidden, others[number])
        alone = obs.remove(layer.mlp.down_proj.weight, seen.gram, 24)
        assert torch.equal(found[number].kept, alone.kept)
        assert torch.equal(found[number].down, alone.down)
        assert 0 < found[number].damage < 1
        hidden = seen.out
    assert len(found) == 6


def test_without_repair_it_is_worse_and_by_chance_worst() -> None:
    model = make("llama", 4)

    def unrepaired(mlp: Any, down: torch.Tensor, gram: torch.Tensor, count: int) -> Remaining:
        left = obs.remove(down, gram, count)
        return Remaining(left.kept, down[:, left.kept], left.damage)

    def drawn(mlp: Any, down: torch.Tensor, gram: torch.Tensor, count: int) -> Remaining:
        kept = torch.randperm(len(gram), generator=torch.Generator().manual_seed(0))[count:].sort().values
        return Remaining(kept, down[:, kept], 1.0)

    ours, plain, chance = (
        distance(contracted(model, choose=choose), model) for choose in (sweep.least_damage, unrepaired, drawn)
    )
    assert ours < plain < chance


def test_what_is_known_is_taken_as_it_is_and_the_rest_comes_out_the_same() -> None:
    model = make("qwen3", 4)
    found: dict[int, Remaining] = {}
    whole = contracted(model, tell=found.__setitem__)
    told: list[int] = []
    again = contracted(model, known={0: found[0], 2: found[2]}.get, tell=lambda number, left: told.append(number))
    assert told == [1, 3]
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_layers_of_which_nothing_goes_stay_as_they_are() -> None:
    model = make("llama", 4)
    changed = copy.deepcopy(model)
    sweep.contract(changed, sequences(), [0, 16, 0, 0], CPU)
    for number in (0, 2, 3):
        before, after = (one.model.layers[number].state_dict() for one in (model, changed))
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert changed.model.layers[1].mlp.down_proj.in_features == 48


def test_biases_go_with_their_neurons_and_those_of_the_output_stay() -> None:
    model = families.make("llama-plain-heads").requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3)
    found: dict[int, Remaining] = {}
    changed = contracted(model, tell=found.__setitem__)
    for number, layer in enumerate(changed.model.layers):
        old = model.model.layers[number].mlp
        assert torch.equal(layer.mlp.gate_proj.bias, old.gate_proj.bias[found[number].kept])
        assert torch.equal(layer.mlp.down_proj.bias, old.down_proj.bias)
