"""Healing: what is minimised is the divergence from the original, and its gradient that of the plain formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.trainer import evaluate
from engine.trainer.contract import healing
from engine.trainer.contract.progress import Progress
from engine.trainer.objective import Objective
from tests.trainer import families
from tests.trainer.contract.test_layout import CPU, sequences


def pair(family: str) -> tuple[Any, Any]:
    """Return a student that learns and another of the same architecture."""
    student, teacher = families.make(family), families.make(family)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return student, teacher


# The second's logits are more than its head's product.
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_loss_is_the_divergence_from_the_original(family: str) -> None:
    student, teacher = pair(family)
    student.get_input_embeddings().requires_grad_(False)
    student.get_output_embeddings().requires_grad_(False)
    corpus = healing.corpus(sequences(4), sequences(6)[4:], pad=0)
    plain = Objective.of(student, CPU, corpus.pad, corpus.validation[0])
    objective = healing.TowardsOriginal.between(plain, teacher)
    found = objective.summed(objective.collate(corpus.training[:]))
    found.backward()
    learning = [p for p in student.parameters() if p.requires_grad]
    gradients = [p.grad.clone() for p in learning]

    student.zero_grad()
    ids = torch.tensor(sequences(4))
    ours, theirs = (model(input_ids=ids).logits[:, :-1].log_softmax(-1) for model in (student, teacher))
    wanted = (theirs.exp() * (theirs - ours)).sum()
    wanted.backward()
    assert float(found) == pytest.approx(float(wanted), rel=1e-3)
    assert float(found) > 0.1
    for gradient, parameter in zip(gradients, learning, strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-2, atol=1e-4 * float(parameter.grad.abs().max() + 1))
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())


def test_the_original_is_no_distance_from_itself() -> None:
    model = families.make("llama")
    corpus = healing.corpus(sequences(2), sequences(3)[2:], pad=0)
    plain = Objective.of(model, CPU, corpus.pad, corpus.validation[0])
    objective = healing.TowardsOriginal.between(plain, families.make("llama"))
    assert evaluate.mean_loss(objective, corpus.validation, 1) == pytest.approx(0, abs=1e-6)
    assert evaluate.mean_loss(plain, corpus.validation, 1) > 1


def test_every_token_of_own_text_counts_and_what_is_held_out_is_not_trained_on() -> None:
    given = sequences(6, 10)
    corpus = healing.corpus(given[:4], given[4:], pad=0)
    assert [pack[0].ids for pack in corpus.training] == given[:4]
    assert [pack[0].ids for pack in corpus.validation] == given[4:]
    assert all(pack[0].labels == pack[0].ids for pack in corpus.training)
    assert (corpus.training_rows, corpus.training_tokens) == (4, 40)
    assert {tuple(one.ids) for pack in corpus.sequences(0, 4, seed=1) for one in pack} == set(map(tuple, given[:4]))


class Heard:
    """Keeps what a reporter would tell."""

    def __init__(self) -> None:
        self.told: list[tuple[float | None, float | None]] = []

    def activity(self, text: str, *, done: float | None = None, eta_s: float | None = None) -> None:
        self.told.append((done, eta_s))


def test_what_is_left_is_estimated_from_what_this_attempt_did() -> None:
    heard, now = Heard(), [100.0]
    progress = Progress(heard, alone=True, clock=lambda: now[0])  # type: ignore[arg-type]
    progress.tell("prune", 0.5, "an earlier attempt did half of it")
    now[0] += 10
    progress.tell("prune", 0.75, "ten seconds for a tenth of the job")
    progress.tell("end", 0.0, "the end")
    (first, none), (second, eta), (third, _) = heard.told
    assert (first, none) == (pytest.approx(0.75), None)
    assert second == pytest.approx(0.85)
    assert eta == pytest.approx(15)
    assert third == pytest.approx(0.95)


def test_where_steps_of_healing_come_they_tell_how_far_it_is() -> None:
    heard = Heard()
    Progress(heard, alone=False).tell("prune", 0.5, "half of the layers")  # type: ignore[arg-type]
    assert heard.told == [(None, None)]
