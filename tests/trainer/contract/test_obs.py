"""Optimal brain surgeon: held against what it is derived from, on layers small enough to try everything."""

from __future__ import annotations

import itertools

import pytest
import torch

from engine.trainer.contract import obs


@pytest.fixture
def hardly_damped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What damping trades away for the sake of other texts is not to hide whether the surgery is right."""
    monkeypatch.setattr(obs, "DAMPING", 1e-4)


def layer(neurons: int, *, out: int = 6, tokens: int = 400, rank: int | None = None, seed: int = 0):
    """Return (D [h, f], activations [n, f]) of an MLP whose neurons say much of the same."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, rank or neurons, generator=generator) @ torch.randn(
        rank or neurons, neurons, generator=generator
    )
    noise = torch.randn(tokens, neurons, generator=generator)
    return torch.randn(out, neurons, generator=generator), mixed + (0.1 * noise if rank else 0 * noise)


def gram(activations: torch.Tensor) -> torch.Tensor:
    return activations.double().t() @ activations.double() / len(activations)


def loss(down: torch.Tensor, activations: torch.Tensor, found: obs.Remaining) -> float:
    """Return the mean square of what the output lost, as the layer itself would show it."""
    whole = activations.double() @ down.double().t()
    left = activations[:, found.kept].double() @ found.down.double().t()
    return float((whole - left).square().sum() / whole.square().sum())


def test_the_damage_that_is_told_is_the_damage_that_is_done() -> None:
    down, activations = layer(24, rank=8)
    found = obs.remove(down, gram(activations), 10)
    assert found.kept.tolist() == sorted(found.kept.tolist())
    assert (found.down.shape, len(found.kept)) == ((6, 14), 14)
    assert found.damage == pytest.approx(loss(down, activations, found), rel=1e-3)


def test_the_first_neuron_to_go_is_the_one_whose_loss_the_others_make_up_for_best() -> None:
    for seed in range(5):
        down, mixed = layer(9, seed=seed)
        # Far enough from singular that the damping decides nothing.
        activations = mixed + 3 * torch.randn(mixed.shape, generator=torch.Generator().manual_seed(seed))
        h = gram(activations)
        stays = [[n for n in range(9) if n != gone] for gone in range(9)]
        damages = [obs.repaired(down, h, torch.tensor(kept)).damage for kept in stays]
        assert int(obs.order(down, h, 1)[0]) == min(range(9), key=damages.__getitem__)


@pytest.mark.usefixtures("hardly_damped")
def test_one_by_one_it_comes_near_the_best_of_all_choices() -> None:
    down, activations = layer(10, rank=5)
    h = gram(activations)
    best = min(obs.repaired(down, h, torch.tensor(kept)).damage for kept in itertools.combinations(range(10), 6))
    assert obs.repaired(down, h, torch.tensor(stays(obs.order(down, h, 4, groups=4), 10))).damage < 1.3 * best + 1e-4


def stays(gone: torch.Tensor, neurons: int) -> list[int]:
    return [n for n in range(neurons) if n not in gone.tolist()]


@pytest.mark.usefixtures("hardly_damped")
def test_neurons_that_repeat_others_cost_next_to_nothing() -> None:
    down, activations = layer(12)
    twice = torch.cat([activations, activations], 1)
    found = obs.remove(torch.cat([down, down], 1), gram(twice), 12)
    assert found.damage < 1e-3
    assert {n % 12 for n in found.kept.tolist()} == set(range(12))


@pytest.mark.usefixtures("hardly_damped")
def test_neurons_that_never_speak_are_the_first_to_go_and_leave_the_rest_as_it_was() -> None:
    down, activations = layer(16)
    activations[:, [3, 7, 11]] = 0
    found = obs.remove(down, gram(activations), 3)
    assert stays(torch.tensor([3, 7, 11]), 16) == found.kept.tolist()
    assert found.damage < 1e-3


def test_the_repair_is_better_than_leaving_the_others_as_they_are_and_than_random_choice() -> None:
    down, activations = layer(64, rank=20)
    h = gram(activations)
    found = obs.remove(down, h, 32)
    unrepaired = obs.Remaining(found.kept, down[:, found.kept], 0.0)
    random = obs.repaired(down, h, torch.randperm(64, generator=torch.Generator().manual_seed(1))[:32].sort().values)
    assert loss(down, activations, found) < 0.5 * loss(down, activations, unrepaired)
    assert loss(down, activations, found) < loss(down, activations, random)


@pytest.mark.parametrize("count", [0, 1, 23])
def test_few_or_nearly_all_neurons_may_go(count: int) -> None:
    down, activations = layer(24)
    found = obs.remove(down, gram(activations), count)
    assert len(found.kept) == 24 - count
    assert torch.isfinite(found.down).all()
    if not count:
        # All but the damping.
        assert found.damage < 1e-4


def test_one_loud_neuron_does_not_keep_the_others_from_making_up_for_those_that_go() -> None:
    down, activations = layer(48, rank=12)
    quiet = obs.remove(down, gram(activations), 24)
    loud = activations.clone()
    loud[0, 5] = 1e3 * activations.abs().max()
    h = gram(loud)
    found = obs.remove(down, h, 24)
    assert 5 in found.kept.tolist()
    # Judged on the tokens at which it does not shout.
    assert loss(down, activations[1:], found) < 1.5 * loss(down, activations[1:], quiet) + 1e-3


def test_the_power_of_an_output_is_its_mean_square() -> None:
    down, activations = layer(16)
    wanted = float((activations @ down.t()).square().sum(1).mean())
    assert obs.power(down, gram(activations)) == pytest.approx(wanted, rel=1e-4)
