"""Held-out loss of a model and of adapters on it, by plain code that is nobody's trainer, and facts for the limits.

Every row alone, no packing, no padding, in fp32 on the CPU and bf16 on a card. Started by bench.finetune_vs_trl:

    python -m bench.judge MODEL ROWS ADAPTER …       prints JSON
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def loss(model: Any, rows: list[torch.Tensor]) -> float:
    """Return the mean cross-entropy in nats over every token but each row's first."""
    total, count = 0.0, 0
    for ids in rows:
        logits = model(input_ids=ids).logits.float()
        total += float(functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count


def elements(file: Path) -> int:
    """Return the number of elements of all tensors in a safetensors file."""
    with safe_open(file, "pt") as tensors:
        return sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118  (not a dict)


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the best of some square matrix products: what this device can do at most.

    On a CPU per core-second, times the threads: other programs on the machine leave that as it is.
    """
    card = device.type == "cuda"
    size = 8192 if card else 2048
    a, b = torch.randn(size, size, device=device, dtype=dtype), torch.randn(size, size, device=device, dtype=dtype)
    clock = time.perf_counter if card else time.process_time
    best = float("inf")
    for _ in range(20):
        begun = clock()
        a @ b
        if card:
            torch.cuda.synchronize()
        best = min(best, clock() - begun)
    return 2 * size**3 / best * (1 if card else torch.get_num_threads())


def main(folder: str, file: str, adapters: list[str]) -> dict[str, Any]:
    """Judge the model alone, then with each adapter."""
    card = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if card else (torch.device("cpu"), torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(device).eval()
    messages = [json.loads(line)["messages"] for line in Path(file).read_text().splitlines()]
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in messages]
    rows = [tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(device) for text in texts]
    config, linear = model.config, (m for m in model.modules() if isinstance(m, torch.nn.Linear))
    heads = config.num_attention_heads
    facts = {
        "parameters": model.num_parameters(),
        "matmul_parameters": sum(module.weight.numel() for module in linear),
        "layers": config.num_hidden_layers,
        "query_width": heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        "adapter_parameters": elements(Path(adapters[0]) / "adapter_model.safetensors"),
        "ceiling": ceiling(device, dtype),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
    }
    losses = [loss(model, rows)]
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).eval()
        losses.append(loss(model, rows))
        model = model.unload()
    return {**facts, "held_out_rows": len(rows), "loss_before": losses[0], "losses": losses[1:]}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], sys.argv[3:])))
