"""Faster kernels where they help: Liger's on an NVIDIA card, torch.compile layer by layer where it is asked for.

The rule: a kernel that is missing or fails is left out and said so; no run ends for want of speed.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.trainer import models


def liger(model: Any, device: torch.device) -> str | None:
    """Give a freshly loaded model Liger's norms and rotary embedding; return what to tell the user.

    Its cross-entropy and MLP are left out: this project's own keep less. Liger: Hsu et al. 2024, arXiv 2410.10989.
    """
    if device.type != "cuda":
        return None
    try:
        from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance
    except ImportError:
        return None
    try:
        _apply_liger_kernel_to_instance(
            model=model, rope=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=False, swiglu=False
        )
    except Exception as error:  # noqa: BLE001  (it knows some architectures and fails on the others as it likes)
        return f"Liger's kernels do not fit this model ({error}); going on without."
    return "Liger's kernels for norms and rotary embedding are used."


def compile_layers(model: Any) -> str:
    """Compile each decoder layer by itself, for rows of any length; return what to tell the user.

    Layer by layer, since they are all alike: one compilation of about a minute serves them all.
    """
    import torch._dynamo

    # What cannot be compiled runs as it is.
    torch._dynamo.config.suppress_errors = True
    layers = getattr(models.causal(model).get_decoder(), "layers", ())
    for layer in layers:
        layer.compile(dynamic=True)
    if not layers:
        return "torch_compile: this architecture has no list of decoder layers; going on without."
    return f"{len(layers)} decoder layers are compiled at the first step, which takes about a minute."
