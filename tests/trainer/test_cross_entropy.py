"""Cross-entropy in chunks is torch's own, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.trainer import cross_entropy
from engine.trainer.objective import Objective
from tests.trainer import families
from tests.trainer.families import APART, SHARING

VOCABULARY = 211


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 64 rows go through the head at once."""
    monkeypatch.setattr(cross_entropy, "chunk_rows", lambda *_: 64)


def problem(rows: int, *, bias: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return ([hidden states, head, bias where there is one], targets)."""
    torch.manual_seed(0)
    parts = [torch.randn(rows, 24), torch.randn(VOCABULARY, 24)] + ([torch.randn(VOCABULARY)] if bias else [])
    return [part.requires_grad_() for part in parts], torch.randint(0, VOCABULARY, (rows,))


def both(rows: int, *, bias: bool, scale: float = 1.0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return (loss and gradients in chunks, those of torch), of the mean as the loop takes it."""
    results = []
    for chunked in (True, False):
        parts, targets = problem(rows, bias=bias)
        hidden, weight, offset = (*parts, None)[:3]
        if chunked:
            loss = cross_entropy.summed(hidden, weight, offset, targets) / rows
        else:
            loss = functional.cross_entropy(functional.linear(hidden, weight, offset), targets)
        (loss * scale).backward()
        results.append([loss.detach(), *(part.grad for part in parts if part.grad is not None)])
    return results[0], results[1]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 300])
@pytest.mark.usefixtures("small_chunks")
def test_loss_and_gradients_of_hidden_states_head_and_bias_are_torchs(rows: int, bias: bool) -> None:
    ours, torchs = both(rows, bias=bias)
    assert len(ours) == len(torchs) == (4 if bias else 3)
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_chunks")
def test_the_gradient_follows_what_the_loss_is_multiplied_by() -> None:
    ours, torchs = both(130, bias=True, scale=2.0**14)
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * 2.0**14)


def test_one_chunk_and_many_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = both(300, bias=True)
    assert cross_entropy.chunk_rows(VOCABULARY, torch.device("cpu")) >= 300
    monkeypatch.setattr(cross_entropy, "chunk_rows", lambda *_: 7)
    for one, other in zip(whole, both(300, bias=True)[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_logits_far_apart_stay_numbers() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight, targets = torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([1, 1])
    loss = cross_entropy.summed(hidden, weight, None, targets)
    loss.backward()
    assert float(loss.detach()) == 2e4  # all of it from the first row, which is as wrong as can be
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_only_what_learns_gets_a_gradient_and_nothing_needs_one() -> None:
    (hidden, weight), targets = problem(70, bias=False)
    frozen = weight.detach()
    cross_entropy.summed(hidden, frozen, None, targets).backward()
    assert hidden.grad is not None
    assert frozen.grad is None
    with torch.no_grad():
        judged = cross_entropy.summed(hidden, weight, None, targets)
    assert not judged.requires_grad
    assert float(judged) == pytest.approx(
        float(functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum"))
    )


@pytest.mark.parametrize("family", ["llama", "phi"])  # a head tied to the embeddings; one with a bias
@pytest.mark.usefixtures("small_chunks")
def test_through_a_whole_model_that_learns_the_gradients_are_those_of_its_own_forward_pass(family: str) -> None:
    model, stock = families.make(family), families.make(family)
    objective = Objective.of(model, torch.device("cpu"), 0, APART)
    assert objective.direct
    batch = objective.collate([APART, SHARING])
    assert batch.target_count > 64
    (objective.summed(batch) / batch.target_count).backward()
    (sum(families.loss_alone(stock, one) for one in [*APART, *SHARING]) / batch.target_count).backward()
    assert family != "llama" or model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ours, theirs = dict(model.named_parameters()), dict(stock.named_parameters())
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
