"""What growth changed is measured on the model as it will be saved, in fp32, whatever the base is held in."""

from __future__ import annotations

import copy

import pytest
import torch

from engine.errors import EngineError
from engine.trainer.grow import preservation
from engine.trainer.grow.operators import Grown, Growth
from tests.trainer import families
from tests.trainer.grow.test_operators import GROWN, IDS, SHAPES, change, logits


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", GROWN)
def test_layer_by_layer_it_is_what_the_folded_model_shows_as_a_whole(family: str, shape: str) -> None:
    model = families.make(family)
    before = logits(model)
    grown = Grown(model, SHAPES[shape], seed=1)
    with torch.no_grad():
        for parameter in grown.new_parameters().values():
            parameter.add_(0.02 * torch.randn_like(parameter))  # so that there is something to measure
    found = preservation.measure(grown, IDS)
    folded = logits(grown.fold())
    assert found.change == pytest.approx(change(before, folded), rel=1e-3)
    assert found.change > 1e-3
    agreement = float((folded.argmax(-1) == before.argmax(-1)).float().mean())
    assert found.agreement == pytest.approx(agreement, abs=0.02)
    ours, theirs = folded.log_softmax(-1), before.log_softmax(-1)
    assert found.kl == pytest.approx(float((theirs.exp() * (theirs - ours)).sum(-1).mean()), rel=1e-2)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_on_a_base_in_16_bits_layers_change_nothing_and_width_next_to_nothing(family: str) -> None:
    for growth, most in ((Growth(blocks=(0, 1)), 0.0), (Growth(units=64), 1e-5)):
        found = preservation.measure(Grown(families.make(family).to(torch.bfloat16), growth, seed=1), IDS)
        assert found.change <= most
        assert (found.kl, found.agreement) == (pytest.approx(0, abs=1e-6), 1.0)


def test_a_growth_that_speaks_at_once_or_gives_no_number_ends_the_job() -> None:
    for value in (0.5, float("nan")):
        grown = Grown(copy.deepcopy(families.make("llama")), Growth(blocks=(1,)), seed=1)
        name, parameter = next((n, p) for n, p in grown.new_parameters().items() if n.endswith("down_proj.weight"))
        assert float(parameter.detach().abs().max()) == 0, name
        with torch.no_grad():
            parameter.fill_(value)
        with pytest.raises(EngineError, match=r"moved by .* of their size, more than 0.0001"):
            preservation.measure(grown, IDS).check()


def test_documents_are_laid_end_to_end_until_there_are_enough() -> None:
    probe = preservation.probe(iter([[1, 2, 3]] * 1000), 64)
    assert probe.shape == (8, 64)
    assert probe.flatten().tolist()[:6] == [1, 2, 3, 1, 2, 3]
    assert preservation.probe(iter([[1, 2, 3], [4]]), 64).tolist() == [[1, 2, 3, 4]]
