"""The divergence in chunks is the divergence, and so is its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.trainer import cross_entropy, divergence


@pytest.mark.parametrize("biased", [False, True])
def test_value_and_gradient_are_those_of_torch(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 0)  # chunks of 64 rows, the least
    torch.manual_seed(1)
    hidden = torch.randn(150, 12, requires_grad=True)
    teacher = torch.randn(150, 20)
    ours = (torch.randn(31, 12), torch.randn(31) if biased else None)
    theirs = (torch.randn(31, 20), torch.randn(31) if biased else None)
    plain = functional.kl_div(
        functional.linear(hidden, *ours).log_softmax(1),
        functional.linear(teacher, *theirs).log_softmax(1),
        reduction="sum",
        log_target=True,
    )
    (wanted,) = torch.autograd.grad(3 * plain, hidden)
    found = divergence.of_hidden(hidden, ours, teacher, theirs)
    (gradient,) = torch.autograd.grad(3 * found, hidden)
    assert float(found) == pytest.approx(float(plain), rel=1e-5)
    assert torch.allclose(gradient, wanted, atol=1e-5)
    logits = divergence.of_logits(functional.linear(hidden, *ours), functional.linear(teacher, *theirs))
    assert float(logits) == pytest.approx(float(plain), rel=1e-5)


def test_it_is_nothing_between_equals_and_needs_no_gradient_where_nothing_learns() -> None:
    hidden, head = torch.randn(5, 8), (torch.randn(9, 8), None)
    assert float(divergence.of_hidden(hidden, head, hidden, head)) == pytest.approx(0, abs=1e-5)
