"""The penalty is the divergence from the original, of which no second copy is held."""

from __future__ import annotations

import pytest
import torch

from engine.trainer.grow.operators import Grown
from engine.trainer.grow.retention import Retention, documents
from engine.trainer.objective import Objective
from tests.trainer import families
from tests.trainer.grow.test_operators import SHAPES

CPU = torch.device("cpu")
OWN = [families.document(24, seed=seed).ids for seed in range(5)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])  # the last has no plain head
def test_it_is_the_divergence_of_the_logits_and_its_gradient_reaches_what_is_new_alone(family: str) -> None:
    model = families.make(family)
    grown = Grown(model, SHAPES["both"], seed=1)
    objective = Objective.of(model, CPU, 0, documents(OWN)[0], noise=5.0)
    retention = Retention(grown, objective, OWN, weight=0.5, seed=0)
    assert float(retention(1).detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for parameter in grown.new_parameters().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.train()
    penalty = retention(1)
    (document,) = retention._sequences[0]
    ids = torch.tensor([document.ids])
    model.eval()
    with torch.no_grad():
        ours = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        with grown.original() as original:
            theirs = original(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    plain = 0.5 * float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert plain > 1e-4
    assert float(penalty.detach()) == pytest.approx(plain, rel=1e-3)
    penalty.backward()
    new = grown.new_parameters()
    assert {name for name, p in model.named_parameters() if p.grad is not None} <= set(new)
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in new.values())


def test_a_step_has_the_same_sequence_in_every_attempt_and_all_have_their_turn() -> None:
    model = families.make("llama")
    grown = Grown(model, SHAPES["depth"], seed=1)
    objective = Objective.of(model, CPU, 0, documents(OWN)[0])
    with torch.no_grad():
        for parameter in grown.new_parameters().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    first, again = (Retention(grown, objective, OWN, weight=1.0, seed=3) for _ in range(2))
    told = [float(first(step).detach()) for step in range(1, 11)]
    assert told == [float(again(step).detach()) for step in range(1, 11)]
    assert told[:5] == told[5:]
    assert len(set(told[:5])) == 5
