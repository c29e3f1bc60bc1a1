"""Which neurons of an MLP go, and how the others make up for them: optimal brain surgeon with least squares.

Of y = D a, where a [f] are the neurons' activations and D [h, f] is the down projection, only H = E[a aᵀ] [f, f] is
needed. Removing neuron j and letting the others make up for it costs ‖d_j‖² / (H⁻¹)_jj (Hassibi and Stork 1993), and
the best D on the neurons K that stay is D H[:, K] H[K, K]⁻¹.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Of the median of H's diagonal, so that neurons that never speak do no harm. Not of its mean: at the first token of a
# text a few neurons speak a thousand times louder than the rest (Sun et al. 2024, arXiv 2402.17762). In layer 11 of
# SmolLM2-135M the mean is 1,260 times the median, and a hundredth of it is more than all that most neurons say. How
# much is a trade between the text that is calibrated on and others: on SmolLM2-135M without 30 % of its neurons, a
# tenth gave 1.19 times the perplexity on chat rows and 1.73 times on a licence, three tenths 1.20 and 1.80 (both with a
# fiftieth of each neuron's own power on top).
DAMPING = 0.1
GROUPS = 12  # neurons go in so many groups; H⁻¹ and D are brought up to date after each


@dataclass(frozen=True)
class Remaining:
    """What is left of an MLP: the neurons [k] that stay, ascending, the repaired D [h, k], and the damage: the mean
    square of what the output lost, over the mean square of the output."""

    kept: torch.Tensor
    down: torch.Tensor
    damage: float


def damped(gram: torch.Tensor) -> torch.Tensor:
    """Return H with a little of its median diagonal added, in fp64: its inverse is asked of nearly singular ones."""
    h = gram.double()
    power = h.diagonal()
    usual = power.median() if power.median() > 0 else power.mean()
    return h + DAMPING * usual.clamp_min(1e-12) * torch.eye(len(h), dtype=h.dtype, device=h.device)


def power(down: torch.Tensor, gram: torch.Tensor) -> float:
    """Return the mean square, over tokens, of what D [h, f] gives."""
    return float(((down.double() @ gram.double()) * down.double()).sum())


def order(down: torch.Tensor, gram: torch.Tensor, count: int, groups: int = GROUPS) -> torch.Tensor:
    """Return the `count` neurons to remove [count], the first to go first."""
    inverse = torch.linalg.inv(damped(gram))
    weights = down.double().clone()
    alive = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    gone: list[torch.Tensor] = []
    for number in range(groups):
        size = count * (number + 1) // groups - count * number // groups
        if not size:
            continue
        cost = weights.square().sum(0) / inverse.diagonal().clamp_min(1e-30)
        cost[~alive] = torch.inf
        group = cost.topk(size, largest=False).indices
        # Both updates are those of leaving out the group at once.
        share = torch.linalg.solve(inverse[group][:, group], inverse[group])
        weights -= weights[:, group] @ share
        inverse -= inverse[:, group] @ share
        alive[group] = False
        gone.append(group)
    return torch.cat(gone) if gone else torch.zeros(0, dtype=torch.long, device=gram.device)


def repaired(down: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor) -> Remaining:
    """Return the least-squares fit of D on the neurons that stay, in the dtype of `down`."""
    h, weights = damped(gram), down.double()
    fitted = torch.linalg.solve(h[kept][:, kept], h[kept] @ weights.t()).t()
    lost = weights.clone()
    lost[:, kept] -= fitted
    damage = power(lost, gram) / max(power(weights, gram), 1e-30)
    return Remaining(kept, fitted.to(down.dtype), damage)


def remove(down: torch.Tensor, gram: torch.Tensor, count: int) -> Remaining:
    """Remove `count` neurons from an MLP and repair what is left. `down` is D [h, f], `gram` is H [f, f]."""
    gone = order(down, gram, count)
    stays = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    stays[gone] = False
    return repaired(down, gram, stays.nonzero().flatten())
