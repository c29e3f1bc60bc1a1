"""Growth leaves the answers as they were, learns only what is new, and folds into a model that stock code loads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.errors import Unsupported
from engine.trainer.data.batch import IGNORED, Document
from engine.trainer.grow.operators import Grown, Growth
from engine.trainer.objective import Objective
from tests.trainer import families

GROWN = ["llama", "llama-plain-heads", "qwen2", "qwen3", "mistral", "gemma2", "gemma3"]
SHAPES = {
    "depth": Growth(blocks=(0, 1)),
    "width": Growth(units=64),
    "both": Growth(blocks=(1, 1), units=64),
}
IDS = torch.tensor([families.document(40, seed=1).ids, families.document(40, seed=2).ids])


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def change(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return the function preservation: the largest change of a logit over the largest logit."""
    return float((after - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", GROWN)
def test_growth_changes_no_logit_while_it_grows_and_next_to_none_when_folded(family: str, shape: str) -> None:
    model = families.make(family)
    before, size = logits(model), model.num_parameters()
    grown = Grown(model, SHAPES[shape], seed=1)
    assert torch.equal(logits(model), before)
    added = sum(parameter.numel() for parameter in grown.new_parameters().values())
    folded = grown.fold()
    assert folded.num_parameters() == size + added
    assert change(before, logits(folded)) == (0 if shape == "depth" else pytest.approx(0, abs=1e-5))


@pytest.mark.parametrize("family", GROWN)
def test_a_folded_model_loads_with_stock_transformers_and_writes_the_same(family: str, tmp_path: Path) -> None:
    model = families.make(family, num_hidden_layers=3)
    model.generation_config.eos_token_id = None
    prompt = IDS[:1, :12]
    wrote = model.generate(prompt, max_new_tokens=20, do_sample=False)
    Grown(model, SHAPES["both"], seed=1).fold().save_pretrained(tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (stock.config.num_hidden_layers, stock.config.intermediate_size) == (5, 128)
    assert torch.equal(stock.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None), wrote)


@pytest.mark.parametrize("family", GROWN)
def test_what_is_new_learns_at_once_and_what_is_old_never(family: str) -> None:
    model = families.make(family)
    old = {name: parameter.clone() for name, parameter in model.named_parameters()}
    before = logits(model)
    grown = Grown(model, SHAPES["both"], seed=1)
    new = grown.new_parameters()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(new)
    optimizer = torch.optim.AdamW(new.values(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        losses.append(float(loss))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1
    assert change(before, logits(model)) > 1e-2
    # The model before the growth is still in there, bit for bit.
    with grown.original() as original:
        assert torch.equal(logits(original), before)
        assert original.config.num_hidden_layers == 2
    assert change(before, logits(model)) > 1e-2
    kept = {name: p for name, p in model.named_parameters() if name not in new}
    assert len(kept) == len(old)
    assert sorted(float(p.double().sum()) for p in kept.values()) == sorted(
        float(p.double().sum()) for p in old.values()
    )


def test_every_new_tensor_has_a_gradient_within_two_steps() -> None:
    """Two: a zeroed projection's inputs get theirs as soon as it has moved."""
    for family in GROWN:
        model = families.make(family)
        new = Grown(model, SHAPES["both"], seed=1).new_parameters()
        optimizer = torch.optim.SGD(new.values(), lr=1e-2)
        moved = dict.fromkeys(new, 0.0)
        for _ in range(3):
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
            for name, parameter in new.items():
                moved[name] += 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())
            optimizer.step()
            optimizer.zero_grad()
        assert [name for name, size in moved.items() if not size] == [], family


def test_what_was_trained_is_kept_by_the_fold() -> None:
    model = families.make("llama")
    grown = Grown(model, SHAPES["both"], seed=1)
    with torch.no_grad():
        for parameter in grown.new_parameters().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    trained = logits(model)
    assert change(trained, logits(grown.fold())) < 1e-5


def test_the_same_seed_grows_the_same_model_and_another_another() -> None:
    def grow(seed: int) -> torch.Tensor:
        grown = Grown(families.make("llama"), SHAPES["width"], seed=seed)
        return torch.cat([parameter.flatten() for parameter in grown.new_parameters().values()])

    assert torch.equal(grow(3), grow(3))
    assert not torch.equal(grow(3), grow(4))


@pytest.mark.parametrize("family", ["gpt2", "gpt-oss", "falcon"])
def test_other_architectures_are_refused_with_the_names_of_those_that_can_be_grown(family: str) -> None:
    model = families.make(family)
    with pytest.raises(Unsupported, match="llama, mistral, qwen2"):
        Grown(copy.deepcopy(model), SHAPES["depth"], seed=1)


@pytest.mark.parametrize("family", GROWN)
def test_what_has_learned_something_still_attends_inside_documents_alone(family: str) -> None:
    """While a new block is silent nobody sees how it attends."""
    model = families.make(family)
    grown = Grown(model, SHAPES["both"], seed=1)
    documents = [families.document(20, seed=seed) for seed in (1, 2, 3)]
    objective = Objective.of(model, torch.device("cpu"), 0, documents)
    with torch.no_grad():
        for parameter in grown.new_parameters().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))

    def loss(*before: Document) -> float:
        context = [Document(one.ids, [IGNORED] * len(one.ids)) for one in before]
        with torch.no_grad():
            return float(objective.summed(objective.collate([[*context, documents[0]]])))

    ids = torch.tensor([documents[0].ids])
    labels = torch.tensor([documents[0].labels])
    with torch.no_grad():
        plain = model(input_ids=ids, use_cache=False).logits[0, :-1]
    whole = float(torch.nn.functional.cross_entropy(plain, labels[0, 1:], reduction="sum", ignore_index=IGNORED))
    assert loss() == pytest.approx(whole, rel=1e-5)
    assert loss(documents[1]) == pytest.approx(whole, rel=1e-5)
    assert loss(documents[2], documents[1]) == pytest.approx(whole, rel=1e-5)
