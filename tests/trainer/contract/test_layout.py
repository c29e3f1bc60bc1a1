"""Which layers lose what; and that what is left is a model of its family, in every family that can be contracted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.errors import Unsupported
from engine.jobs.hyperparams import ContractHyperparams
from engine.trainer import models
from engine.trainer.contract import layout, sweep, targeted
from tests.trainer import families

CPU = torch.device("cpu")
FAMILIES = ("llama-plain-heads", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")


def sequences(count: int = 12, length: int = 24) -> list[list[int]]:
    return torch.randint(3, families.VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1)).tolist()


def settings(**changes: Any) -> ContractHyperparams:
    return ContractHyperparams.model_validate({"num_layers_to_contract": 2, **changes})


def make(family: str, layers: int = 4) -> Any:
    return families.make(family, num_hidden_layers=layers).requires_grad_(False)


@torch.no_grad()
def distance(one: Any, other: Any) -> float:
    """Return the mean KL of two models on text that neither was fitted to."""
    ids = torch.randint(3, families.VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(9))
    ours, theirs = (model(input_ids=ids).logits.log_softmax(-1) for model in (one, other))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def test_the_first_four_and_the_last_two_layers_are_spared_unless_more_are_asked_for() -> None:
    scores = [float(12 - number) for number in range(12)]
    assert layout.least(scores, 2) == (8, 9)
    assert layout.least(scores, 6) == (4, 5, 6, 7, 8, 9)
    assert layout.least(scores, 7) == (4, 5, 6, 7, 8, 9, 11)
    assert layout.least(scores, 12) == tuple(range(12))
    assert layout.least([3.0, 1.0, 2.0], 1) == (1,)
    scores = [0, 0, 0, 0, 5, 3, 4, 1, 0, 0]
    assert layout.least(scores, 2) == (5, 7)
    assert layout.least(scores, 6) == (0, 1, 4, 5, 6, 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_uniform_layout_leaves_a_stock_model_of_the_family(family: str, tmp_path: Path) -> None:
    model = make(family)
    found = layout.uniform(model, settings(contraction_ratio=0.5))
    assert found.counts == (16,) * 4
    assert found.processed == [0, 1, 2, 3]
    sweep.contract(model, sequences(), found.counts, CPU)
    targeted.describe(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.intermediate_size == 48
    assert distance(again, model) < 1e-9


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_a_targeted_layout_is_saved_and_loaded_with_its_widths(family: str, tmp_path: Path) -> None:
    model = make(family)
    told: list[int] = []
    found = layout.targeted(model, settings(num_layers_to_contract=3), sequences(), CPU, told.append)
    assert told == [0, 1, 2, 3]
    assert found.scores == tuple(layout.damages(model, sequences(), [32] * 4, CPU))
    spared = max(range(4), key=found.scores.__getitem__)
    assert found.counts == tuple(0 if number == spared else 32 for number in range(4))
    sweep.contract(model, sequences(), found.counts, CPU)
    targeted.describe(model)
    model.save_pretrained(tmp_path)
    targeted.write_code(model, tmp_path)
    again = models.load_model(tmp_path, torch.float32).eval()
    assert targeted.widths_of(again) == targeted.widths_of(model) != [64] * 4
    assert distance(again, model) < 1e-9


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_whole_layers_go_with_their_kind_of_attention(family: str, tmp_path: Path) -> None:
    model = make(family, 6)
    whole = model.num_parameters()
    kinds = getattr(model.config, "layer_types", None)
    found = layout.depth(model, settings(num_layers_to_contract=4, contraction_ratio=0.9), sequences(4), CPU)
    assert len(found.scores) == 6
    assert len(found.gone) == 2
    layout.remove_layers(model, found.gone)
    targeted.describe(model)
    assert model.num_parameters() < whole
    if kinds:
        assert model.config.layer_types == [kind for n, kind in enumerate(kinds) if n not in found.gone]
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert distance(again, model) < 1e-9
    assert again.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape[1] > 2


def test_least_influence_goes_first_and_a_layer_that_does_nothing_costs_nothing() -> None:
    model, whole = make("llama", 8), make("llama", 8)
    with torch.no_grad():
        for one in (model, whole):
            one.model.layers[5].mlp.down_proj.weight.zero_()
            one.model.layers[5].self_attn.o_proj.weight.zero_()
    found = layout.depth(model, settings(contraction_ratio=0.75), sequences(4), CPU)
    assert found.gone == (5,)
    layout.remove_layers(model, found.gone)
    assert distance(model, whole) < 1e-9


def test_other_families_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"'phi' cannot be contracted yet. These can: llama"):
        layout.check(families.make("phi"), settings())


def test_a_neuron_a_layer_goes_and_one_stays_whatever_is_asked_for() -> None:
    model = make("llama")
    assert layout.uniform(model, settings(contraction_ratio=0.01)).counts == (8,) * 4
    most = layout.uniform(model, settings(contraction_ratio=0.99, num_layers_to_contract=4))
    assert most.counts == (56,) * 4
    few = layout.targeted(model, settings(contraction_ratio=0.001, num_layers_to_contract=4), sequences(), CPU)
    assert few.counts == (1,) * 4
