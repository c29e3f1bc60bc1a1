"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) on every linear layer but the head; peft keeps and writes them.

Their arithmetic is done here in one function a layer: the base product, the low-rank product added in place, and a
backward pass that reads the frozen weight once. Frozen weights may be held in 4 bits (QLoRA: Dettmers et al. 2023,
arXiv 2305.14314); they are expanded when they are read and never kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers.activations import SiLUActivation

from engine import atomic
from engine.errors import Unsupported
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.trainer import device as devices
from engine.trainer import models

Dense = Callable[[], torch.Tensor]
ADAPTER = "default"  # peft's name for the only one
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True)
class _Frozen:
    """What of an adapted layer does not learn: its weight [out, in], its bias, and s, the adapter's scale."""

    dense: Dense
    bias: torch.Tensor | None
    scale: float

    def forward(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return y = x Wᵀ + bias + s·(x Aᵀ) Bᵀ [n, out] and the low-rank x Aᵀ [n, r], all in the dtype of x."""
        low = x @ a.t()
        y = functional.linear(x, self.dense().to(x.dtype), self.bias)
        return y.addmm_(low, b.t(), alpha=self.scale), low

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, low: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (x Aᵀ's gradient, A's, B's): the adapters' in fp32, as they are kept whatever is multiplied in."""
        d_low = dy @ b
        d_a = (d_low.t() @ x).mul_(self.scale)
        d_b = (dy.t() @ low).mul_(self.scale)
        return d_low, d_a.float(), d_b.float()

    def backward_input(self, dy: torch.Tensor, d_low: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Return the gradient of x [n, in]."""
        return (dy @ self.dense().to(dy.dtype)).addmm_(d_low, a, alpha=self.scale)


class _LoraLinear(torch.autograd.Function):
    """An adapted linear layer, for x [n, in] with A [r, in] and B [out, r], which learn."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, frozen: _Frozen) -> torch.Tensor:
        """Return y [n, out] in the dtype of x."""
        a, b = a.to(x.dtype), b.to(x.dtype)
        y, low = frozen.forward(x, a, b)
        ctx.save_for_backward(x, low, a, b)
        ctx.frozen = frozen
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, A and B."""
        (dy,) = grads
        x, low, a, b = ctx.saved_tensors
        d_low, d_a, d_b = ctx.frozen.backward(dy, x, low, b)
        d_x = ctx.frozen.backward_input(dy, d_low, a) if ctx.needs_input_grad[0] else None
        return d_x, d_a, d_b, None


class _LoraSwiGLU(torch.autograd.Function):
    """The same of p = silu(g)·u [n, in]: the end of a gated MLP, whose p is worked out twice.

    Only g and u are kept for the backward pass, not silu(g) and p as well: half the activations of an MLP.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  (autograd passes what it is given in order)
        ctx: Any, g: torch.Tensor, u: torch.Tensor, a: torch.Tensor, b: torch.Tensor, frozen: _Frozen
    ) -> torch.Tensor:
        """Return y [n, out] in the dtype of g."""
        a, b = a.to(g.dtype), b.to(g.dtype)
        y, low = frozen.forward(functional.silu(g).mul_(u), a, b)
        ctx.save_for_backward(g, u, low, a, b)
        ctx.frozen = frozen
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of g, u, A and B."""
        (dy,) = grads
        g, u, low, a, b = ctx.saved_tensors
        gate = torch.sigmoid(g)
        silu = g * gate
        d_low, d_a, d_b = ctx.frozen.backward(dy, silu * u, low, b)
        d_p = ctx.frozen.backward_input(dy, d_low, a)
        d_u = d_p * silu
        # silu' = σ + silu·(1 − σ)
        d_g = d_p.mul_(u).mul_(silu.mul_(1 - gate).add_(gate))
        return d_g, d_u, d_a, d_b, None


def _frozen(layer: Any) -> _Frozen:
    base = layer.base_layer
    # Read anew each time: moving the layer to a device replaces it.
    return _Frozen(partial(models.dense, base), base.bias, float(layer.scaling[ADAPTER]))


def _plain_way(layer: Any) -> bool:
    """Say whether a layer's arithmetic is peft's own just now: merged, switched off, or with dropout in training."""
    dropout = layer.lora_dropout[ADAPTER]
    return bool(
        layer.merged or layer.disable_adapters or (dropout.training and not isinstance(dropout, torch.nn.Identity))
    )


def _fuse(layer: Any) -> None:
    """Let one of peft's layers do its arithmetic here."""
    frozen, plain = _frozen(layer), layer.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if _plain_way(layer):
            result: torch.Tensor = plain(x, *args, **kwargs)
            return result
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        out: torch.Tensor = _LoraLinear.apply(x.reshape(-1, x.shape[-1]), a, b, frozen)
        return out.view(*x.shape[:-1], out.shape[-1])

    layer.forward = forward


def _fuse_mlp(mlp: Any) -> None:
    """Let a gated MLP (Llama's, and of all that took after it) keep half of its activations."""
    layer, plain = mlp.down_proj, mlp.forward
    frozen = _frozen(layer)

    def forward(x: torch.Tensor) -> torch.Tensor:
        if _plain_way(layer):
            result: torch.Tensor = plain(x)
            return result
        g, u = mlp.gate_proj(x), mlp.up_proj(x)
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        flat = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (g, u))
        out: torch.Tensor = _LoraSwiGLU.apply(*flat, a, b, frozen)
        return out.view(*x.shape[:-1], out.shape[-1])

    mlp.forward = forward


def _is_gated_mlp(module: Any) -> bool:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    silu = isinstance(getattr(module, "act_fn", None), torch.nn.SiLU | SiLUActivation)
    return silu and all(hasattr(part, "lora_A") for part in parts) and {*dict(module.named_children())} <= MLP_PARTS


def add_adapters(model: Any, settings: FinetuneHyperparams) -> Any:
    """Freeze `model` and put an adapter on each of its linear layers but the head. Raises Unsupported where none is."""
    # Imported late: it takes longer than torch and transformers together, and a full fine-tune needs none of it.
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        if "target_modules" not in str(error):
            raise
        raise Unsupported(
            f"training_type lora: {type(model).__name__} has no linear layer besides its head to put an adapter on. "
            "Use training_type full."
        ) from None
    for module in adapted.modules():
        if isinstance(module, LoraLayer) and isinstance(module.base_layer, torch.nn.Linear):
            _fuse(module)
        elif _is_gated_mlp(module):
            _fuse_mlp(module)
    return adapted


def merged(model: Any, base: Path, adapter: Path, dtype: torch.dtype) -> Any:
    """Return what `model` has learned as one model, as `dtype` and on the CPU; its adapter is written to `adapter`.

    It is merged onto the weights that are stored in `base`, and `model` is given up for them. Raises OSError.
    """
    device = next(model.parameters()).device
    atomic.step(model.save_pretrained, adapter, safe_serialization=True)
    models.release(model)
    devices.free_memory(device)
    return merge(models.load_model(base, "auto"), adapter, dtype)


def merge(base: Any, adapter: Path, dtype: torch.dtype) -> Any:
    """Return `base`, unquantised and on the CPU, with the adapter in `adapter` merged into its weights, as `dtype`.

    Added up in fp32 a layer at a time and rounded once: in 16 bits small updates vanish, and the whole model in fp32
    needs twice the memory of the one that is published.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    adapted = PeftModel.from_pretrained(base, adapter)
    with torch.no_grad():
        for layer in adapted.modules():
            if isinstance(layer, LoraLayer):
                weight = layer.base_layer.weight
                weight.data = (weight.float() + layer.get_delta_weight(ADAPTER).float()).to(dtype)
    return adapted.unload().to(dtype)
