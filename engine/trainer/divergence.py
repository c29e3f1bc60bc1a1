"""Kullback-Leibler divergence between two heads in chunks, so that the logits of a whole batch never exist.

As in `cross_entropy`, each chunk's gradient is made while its logits are there.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch.nn import functional

from engine.trainer.cross_entropy import chunk_rows

Head: TypeAlias = "tuple[torch.Tensor, torch.Tensor | None]"  # weight [V, h] and bias [V]


class _ChunkedDivergence(torch.autograd.Function):
    """Forward: the summed divergence, and with it the gradient of the hidden states. Backward: hand it over."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: Head, teacher: torch.Tensor, teacher_head: Head) -> torch.Tensor:
        """hidden [n, h] and teacher [n, h'] -> sum of KL(teacher ‖ student) over the rows, in nats, fp32."""
        wanted = ctx.needs_input_grad[0]
        d_hidden = torch.empty_like(hidden) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = chunk_rows(2 * len(head[0]), hidden.device)
        for start in range(0, len(hidden), size):
            ours = functional.linear(hidden[start : start + size], *head).float().log_softmax(1)
            theirs = functional.linear(teacher[start : start + size], *teacher_head).float().log_softmax(1)
            likely = theirs.exp()
            total += (likely * (theirs - ours)).sum()
            if d_hidden is not None:
                torch.mm(ours.exp_().sub_(likely).to(hidden.dtype), head[0], out=d_hidden[start : start + size])
        ctx.save_for_backward(d_hidden)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale what the forward pass made."""
        (d_hidden,) = ctx.saved_tensors
        return None if d_hidden is None else d_hidden * grads[0].to(d_hidden.dtype), None, None, None


def of_hidden(hidden: torch.Tensor, head: Head, teacher: torch.Tensor, teacher_head: Head) -> torch.Tensor:
    """Return the sum over rows of KL(teacher ‖ student) in nats, of hidden states under heads that do not learn.

    Each pair of hidden states and head has one dtype; the divergence is worked out in fp32.
    """
    found: torch.Tensor = _ChunkedDivergence.apply(hidden, head, teacher, teacher_head)
    return found


def of_logits(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the same of logits [n, V]."""
    ours, theirs = logits.float().log_softmax(1), teacher.float().log_softmax(1)
    return (theirs.exp() * (theirs - ours)).sum()
