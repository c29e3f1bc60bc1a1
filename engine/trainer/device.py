"""What the device can do: precision, memory in use, synchronising. One code path for CUDA, Metal and the CPU."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import suppress

import psutil
import torch

MIXED = "holds_new_weights_in_fp32"


def select(name: str) -> torch.device:
    """Return the device called `name`. Raises RuntimeError, with the remedy, where torch cannot use it."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"This machine has a card, but torch {torch.__version__} cannot use it. Install the CUDA build of torch, "
            "update the driver, or hide the card with CUDA_VISIBLE_DEVICES='' to train on the CPU."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Say whether bf16 is a gain on this device.

    A CPU without bf16 instructions multiplies bf16 ten times slower than fp32 (12 against 120 GFLOP/s
    measured on an AVX2 machine), so "available" is not enough there.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which matrices are multiplied: bf16 where it is a gain, fp16 on older cards, else fp32."""
    if has_fast_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def frozen_dtype(stored: str, device: str) -> torch.dtype:
    """Return the dtype in which to hold, on `device`, weights that stay as they are and are `stored` as fp16, bf16, ….

    On a card fp16 stays fp16: what a short training added to a weight is often less than half a step of bf16 there.
    """
    chosen = torch.device(device)
    return torch.float16 if stored == "fp16" and chosen.type == "cuda" else compute_dtype(chosen)


def multiplied_in(model: torch.nn.Module, device: torch.device) -> torch.dtype:
    """Return the dtype in which `model` multiplies: that of its weights, or of the device where they learn in fp32."""
    held = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return compute_dtype(device) if held == torch.float32 else held


def autocast(model: torch.nn.Module, device: torch.device) -> torch.autocast:
    """Return the context in which `model` multiplies in 16 bits where weights are kept in fp32 to learn: all of them,
    or what was grown beside frozen ones in 16 bits, in the type of those, which says so by an attribute called MIXED.
    """
    held = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    dtype = multiplied_in(model, device)
    mixed = held == torch.float32 or getattr(model, MIXED, False)
    return torch.autocast(device.type, dtype, enabled=mixed and dtype != torch.float32)


def loss_scale(model: torch.nn.Module, device: torch.device) -> float:
    """Return what to multiply the loss by at first: fp16 lacks digits for small gradients, other types do not."""
    return 2.0**14 if multiplied_in(model, device) == torch.float16 else 1.0


def free_memory(device: torch.device) -> None:
    """Give back to the device what this process holds and does not use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        # glibc keeps what was freed, and a model that was given up would count beside the next one.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def be_deterministic() -> None:
    """Make every kernel repeat its result bit for bit, at some cost in speed; call it before the card is used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def memory_gb(device: torch.device) -> float:
    """Return the peak memory of this process in GB: reserved on the card, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    return psutil.Process().memory_info().rss / 1e9


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a time measured is the time taken."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the random generators' states, as byte tensors."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(device: torch.device, states: dict[str, torch.Tensor]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
