"""Scores of layers: each measures what it says, and the places follow from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.trainer.grow.diagnose import LayerScore, places, scores
from tests.trainer import families

SEQUENCES = [families.document(30, seed=seed).ids for seed in range(3)]
CPU = torch.device("cpu")


def test_the_gradient_is_that_of_the_weights_themselves_though_none_of_them_learns() -> None:
    model = families.make("llama", num_hidden_layers=3)
    model.requires_grad_(False)
    found = scores(model, SEQUENCES[:1], CPU)
    model.requires_grad_(True)
    ids = torch.tensor(SEQUENCES[:1])
    model(input_ids=ids, labels=ids).loss.backward()
    for one, layer in zip(found, model.model.layers, strict=True):
        outward = (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight)
        total = sum(float(weight.grad.square().sum()) for weight in outward)
        assert one.gradient == pytest.approx((total / sum(weight.numel() for weight in outward)) ** 0.5, rel=1e-4)


def test_a_layer_that_passes_its_input_on_has_no_influence_and_one_that_works_with_few_neurons_little_use() -> None:
    model = families.make("llama", num_hidden_layers=3)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
        model.model.layers[2].mlp.up_proj.weight[1:] = 0
    model.requires_grad_(False)
    found = scores(model, SEQUENCES, CPU)
    assert found[1].influence == pytest.approx(0, abs=1e-6)
    assert min(found[0].influence, found[2].influence) > 1e-3
    assert found[2].utilisation == pytest.approx(1 / 64)
    assert all(0 <= one.score <= 1 for one in found)


def test_the_model_is_left_as_it_was() -> None:
    model = families.make("qwen3")
    model.requires_grad_(False).train()
    before = [parameter.clone() for parameter in model.parameters()]
    assert scores(model, SEQUENCES, CPU) == scores(model, SEQUENCES, CPU)
    assert model.training
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert not any(module._forward_hooks for module in model.modules())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=64), st.integers(0, 150))
def test_blocks_stand_in_the_upper_two_thirds_and_are_spread_evenly(values: list[float], blocks: int) -> None:
    found = [LayerScore(number, 0, 0, 0, value) for number, value in enumerate(values)]
    chosen = places(found, blocks)
    assert len(chosen) == blocks
    assert list(chosen) == sorted(chosen)
    assert all(place >= len(values) // 3 for place in chosen)
    counts = [chosen.count(number) for number in range(len(values) // 3, len(values))]
    assert max(counts) - min(counts) <= 1


def test_within_a_stretch_the_layer_with_the_highest_score_is_taken() -> None:
    values = [9, 9, 9, 0.1, 0.9, 0.2, 0.3, 0.2, 0.8]
    found = [LayerScore(number, 0, 0, 0, value) for number, value in enumerate(values)]
    assert places(found, 2) == (4, 8)
