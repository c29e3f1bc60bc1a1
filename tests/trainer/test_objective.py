"""What is minimised is the loss of each document alone, for any architecture, by the quick way or the plain one."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from engine.trainer import attention, evaluate
from engine.trainer.data.batch import Document
from engine.trainer.objective import APART as ALONE
from engine.trainer.objective import FLAT, PACKED, Objective
from tests.trainer import families
from tests.trainer.families import APART, CONFIGS, SHARING

CPU = torch.device("cpu")
SAMPLE = [families.document(size, seed=size) for size in (40, 30, 9)]


def objective_of(family: str, *, noise: float = 0.0) -> Objective:
    return Objective.of(families.make(family), CPU, 0, SAMPLE, noise=noise)


@pytest.mark.parametrize("family", list(CONFIGS))
def test_loss_and_gradients_of_packed_rows_are_those_of_each_document_alone(family: str) -> None:
    stock, objective = families.make(family), objective_of(family)
    documents = [*APART, *SHARING]
    batch = objective.collate([APART, SHARING[:3], SHARING[3:]])
    packed = objective.summed(batch) / batch.target_count
    packed.backward()
    alone = sum(families.loss_alone(stock, one) for one in documents) / batch.target_count
    alone.backward()
    assert float(packed.detach()) == pytest.approx(float(alone.detach()), abs=1e-5)
    ours = dict(objective.model.named_parameters())
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None:
            scale = max(1.0, float(parameter.grad.abs().max()))
            torch.testing.assert_close(ours[name].grad / scale, parameter.grad / scale, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", list(CONFIGS))
def test_what_one_document_says_does_not_move_the_loss_of_the_one_behind_it(family: str) -> None:
    objective = objective_of(family)
    silent = [Document(one.ids, [-100] * len(one.ids)) for one in (families.document(20, seed=31), APART[0])]
    heard = families.document(15, seed=33)
    with torch.no_grad():
        losses = [float(objective.summed(objective.collate([[first, heard]]))) for first in silent]
        alone = float(families.loss_alone(families.make(family), heard))
    assert losses == pytest.approx([alone, alone], rel=1e-5)


def test_the_quickest_layout_is_taken_that_is_right() -> None:
    found = {family: objective_of(family).layout for family in CONFIGS}
    assert found == {
        **dict.fromkeys(CONFIGS, FLAT),
        "gptj": PACKED,  # its attention asks nobody; it tells documents apart by their positions
        "gemma2": PACKED,  # its attention scores are capped
        # These look beyond a document whatever its positions say.
        **dict.fromkeys(("gpt-oss", "bloom", "falcon", "lfm2"), ALONE),
    }


def test_a_head_is_used_directly_where_logits_are_its_product_and_nothing_more() -> None:
    direct = {family: objective_of(family).direct for family in ("llama", "phi", "gptj", "granite", "gemma2")}
    # Granite scales its logits and Gemma 2 caps them, so their own forward pass must be asked.
    assert direct == {"llama": True, "phi": True, "gptj": True, "granite": False, "gemma2": False}


def test_a_quick_way_that_gives_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.make("llama")
    given = model.config._attn_implementation

    def wrong(parts: tuple[torch.Tensor, ...], *rest: object) -> torch.Tensor:
        query, key, value = parts
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            enable_gqa=True,  # across documents
        ).transpose(1, 2)

    monkeypatch.setattr(attention, "_one_by_one", wrong)
    objective = Objective.of(model, CPU, 0, SAMPLE)
    assert objective.layout == PACKED
    assert model.config._attn_implementation == given
    batch = objective.collate([APART])
    with torch.no_grad():
        alone = sum(float(families.loss_alone(families.make("llama"), one)) for one in APART)
        assert float(objective.summed(batch)) == pytest.approx(alone, rel=1e-5)


def test_choosing_leaves_the_model_as_it_was() -> None:
    model = families.make("llama").train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    random = torch.get_rng_state()
    Objective.of(model, CPU, 0, SAMPLE)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_noise_on_the_embeddings_moves_the_training_loss_and_no_other() -> None:
    noisy, plain = objective_of("llama", noise=5.0), objective_of("llama")
    assert evaluate.mean_loss(noisy, [APART], 1) == evaluate.mean_loss(plain, [APART], 1)
    batch = noisy.collate([APART])
    losses = {}
    for objective in (noisy, plain):
        objective.model.train()
        torch.manual_seed(3)
        losses[objective.noise] = [float(objective.summed(batch).detach()) for _ in range(2)]
        objective.model.eval()
    assert losses[0.0][0] == losses[0.0][1]
    assert len({*losses[5.0], *losses[0.0]}) == 3
    with torch.no_grad():
        assert float(noisy.summed(batch)) == losses[0.0][0]


def test_the_noise_has_the_size_that_its_paper_gives_it() -> None:
    alpha, document = 5.0, families.document(100, seed=1)
    objective = objective_of("llama", noise=alpha)
    table = objective.model.get_input_embeddings()
    seen: list[torch.Tensor] = []
    objective.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].detach()), with_kwargs=True
    )
    objective.model.train()
    batch = objective.collate([[document]])
    objective.summed(batch)
    noise = seen[0] - table(batch.input_ids).detach()
    # Uniform within ± alpha / √(tokens · hidden size).
    bound = alpha / math.sqrt(100 * noise.shape[-1])
    assert bound * 0.99 < float(noise.abs().max()) <= bound * 1.00001
    assert float(noise.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
