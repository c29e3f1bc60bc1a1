"""Cross-entropy in chunks, on labelled rows only, so that the logits of a whole batch never exist.

Each chunk's gradient is made while its logits are there, as in Cut Your Losses (Wijmans et al. 2024, arXiv 2411.09009)
and Liger (arXiv 2410.10989), so the backward pass needs no logits either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

CHUNK_ELEMENTS = 2**24  # of logits at a time: 64 MiB in fp32


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Return how many labelled rows go through the head at once; cards need more of them to be busy."""
    return max(64, CHUNK_ELEMENTS * (1 if device.type == "cpu" else 4) // vocabulary)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward: the summed loss, and with it the gradients of hidden states and head. Backward: hand them over."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        """hidden [n, h], weight [V, h], bias [V] or None, targets [n] -> loss in nats, summed, fp32."""
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = chunk_rows(len(weight), hidden.device)
        for start in range(0, len(hidden), size):
            rows = hidden[start : start + size]
            wanted = targets[start : start + size, None]
            logits = functional.linear(rows, weight, bias).float()
            norm = torch.logsumexp(logits, 1, keepdim=True)
            total += (norm - logits.gather(1, wanted)).sum()
            if d_hidden is not None or d_weight is not None:
                # softmax − one-hot, in the place of the logits
                logits.sub_(norm).exp_()
                logits.scatter_add_(1, wanted, logits.new_full(wanted.shape, -1.0))
                if d_bias is not None:
                    d_bias += logits.sum(0)
                slope = logits.to(hidden.dtype)
                if d_hidden is not None:
                    torch.mm(slope, weight, out=d_hidden[start : start + size])
                if d_weight is not None:
                    d_weight.addmm_(slope.t().to(torch.float32), rows.to(torch.float32))
                del slope
            del logits  # before the next chunk's are made
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale what the forward pass made."""
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        (scale,) = grads
        return (
            None if d_hidden is None else d_hidden * scale.to(d_hidden.dtype),
            None if d_weight is None else (d_weight * scale).to(ctx.dtype),
            None if d_bias is None else (d_bias * scale).to(ctx.dtype),
            None,
        )


def summed(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """Return the cross-entropy in nats, summed over `targets` [n], of hidden states [n, h] under a head [V, h].

    `hidden` and `weight` have one dtype; the loss is worked out in fp32.
    """
    loss: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets)
    return loss
