"""AdamW, with its state in 32 or 8 bits, and that state as plain tensors for a checkpoint.

8-bit state: Dettmers et al. 2021, arXiv 2110.02861 (bitsandbytes). Paged state moves to main memory under pressure.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from engine.errors import Unsupported
from engine.jobs.hyperparams import LoopHyperparams

BETAS = (0.9, 0.999)
SLOW_RATE = 0.1  # of weights that know something already, beside new ones that know nothing
RATE = "rate"  # in a parameter group: its share of the learning rate
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # for each parameter that learns


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make(
    model: torch.nn.Module, settings: LoopHyperparams, device: torch.device, *, slow: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Return the optimiser over the parameters that learn; norms and biases are not decayed.

    The parameters named in `slow` learn at SLOW_RATE of the rate. Raises Unsupported, naming the setting, where this
    device has no such optimiser.
    """
    groups: list[dict[str, Any]] = []
    for rate in (1.0, SLOW_RATE):
        found = [p for name, p in trained_parameters(model).items() if (name in slow) == (rate == SLOW_RATE)]
        groups += [
            {"params": [p for p in found if p.ndim >= 2], "weight_decay": settings.weight_decay, RATE: rate},
            {"params": [p for p in found if p.ndim < 2], "weight_decay": 0.0, RATE: rate},
        ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=BETAS, fused=device.type in ("cuda", "cpu"))
    paged = settings.optimizer == "paged_adamw_8bit"
    if device.type not in (("cuda",) if paged else ("cuda", "cpu")):
        raise Unsupported(
            f"optimizer: {settings.optimizer} does not run on {device.type}. "
            f"Use {'adamw_8bit or adamw' if paged and device.type == 'cpu' else 'adamw'}."
        )
    try:
        import bitsandbytes
    except ImportError:
        raise Unsupported(f"optimizer: {settings.optimizer} needs the package bitsandbytes. Use adamw.") from None
    kind = bitsandbytes.optim.PagedAdamW8bit if paged else bitsandbytes.optim.AdamW8bit
    optimizer: torch.optim.Optimizer = kind(groups, lr=settings.lr, betas=BETAS)
    return optimizer


def state_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's state as tensors on the CPU, named PARAMETER//KEY; counters become tensors too."""
    tensors = {}
    for name, parameter in trained_parameters(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value).detach().cpu().contiguous()
            # 8-bit optimisers share their maps among parameters, and a file holds each tensor once.
            tensors[f"{name}//{key}"] = tensor.clone() if key.startswith("qmap") else tensor
    return tensors


def restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `state_tensors` returned, and nothing beside it."""
    optimizer.state.clear()
    stored: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, field = key.rsplit("//", 1)
        stored.setdefault(name, {})[field] = tensor
    parameters = trained_parameters(model)
    places = {p: (g, i) for g, group in enumerate(optimizer.param_groups) for i, p in enumerate(group["params"])}
    for name, state in stored.items():
        parameter = parameters[name]
        if isinstance(optimizer, torch.optim.AdamW):
            # Its step count lies on the CPU unless it is fused, where it lies with the weights.
            where = dict.fromkeys(state, parameter.device)
            if not optimizer.defaults.get("fused"):
                where["step"] = torch.device("cpu")
            optimizer.state[parameter] = {key: value.to(where[key]) for key, value in state.items()}
        else:
            _restore_8bit(optimizer, parameter, places[parameter], state)


def _restore_8bit(
    optimizer: Any, parameter: torch.nn.Parameter, place: tuple[int, int], stored: dict[str, torch.Tensor]
) -> None:
    """Let the library make its own buffers (paged ones are special memory), then fill them."""
    group, index = place
    if not optimizer.initialized:
        optimizer.check_overrides()
        optimizer.initialized = True
    optimizer.init_state(optimizer.param_groups[group], parameter, group, index)
    state = optimizer.state[parameter]
    for key, value in stored.items():
        if isinstance(state.get(key), torch.Tensor):
            state[key].copy_(value)
        else:
            state[key] = value.item()
