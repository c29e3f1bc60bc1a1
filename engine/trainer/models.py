"""Loading models and tokenizers from local folders or GGUF files, and writing finished ones.

The rule: safetensors in, safetensors out; no code of a model's folder is run and nothing is unpickled.
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

from engine.trainer.batch import Batch
from engine.trainer.data import CHATML


def load_tokenizer(folder: Path, **source: Any) -> Any:
    """Load the tokenizer of a model folder. Raises OSError or ValueError."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def ensure_chat_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template ChatML; return whether that was needed."""
    if tokenizer.chat_template:
        return False
    tokenizer.chat_template = CHATML
    return True


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """Load a causal language model from a local folder, on the CPU. Raises OSError or ValueError."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True
    )


def load_gguf(file: Path) -> tuple[Any, Any]:
    """Load model (bf16, dequantised) and tokenizer from a GGUF file. Raises OSError, ValueError or ImportError."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )
    return model, load_tokenizer(file.parent, gguf_file=file.name)


def generation_config(tokenizer: Any, known: GenerationConfig) -> GenerationConfig:
    """Return `known` with every token that ends an answer in this tokenizer's template."""
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    candidates = [*ends, tokenizer.eos_token_id, end_of_turn if end_of_turn != tokenizer.unk_token_id else None]
    known.eos_token_id = list(dict.fromkeys(token for token in candidates if token is not None))
    known.pad_token_id = tokenizer.pad_token_id
    return known


@torch.no_grad()
def sixteen_bits(model: Any, batch: Batch, device: torch.device) -> torch.dtype:
    """Return the 16-bit type to publish `model` in: fp16 where its weights and activations fit, else bf16.

    What a short fine-tune adds to a weight is often less than half a step of bf16 there, so rounding takes it away
    again. On SmolLM2-135M after 20 steps of LoRA, the logits of the merged model were off by 1.6 in bf16 and by 0.014
    in fp16, whose steps are eight times finer; but fp16 ends at 65,504, and some models' activations go beyond.
    """
    largest = max(float(parameter.abs().max()) for parameter in model.parameters())

    def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            found = float(output.abs().max())
            largest = max(largest, found if math.isfinite(found) else math.inf)

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        model(input_ids=batch.input_ids.to(device), position_ids=batch.position_ids.to(device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    # Half the range is kept for texts that were not looked at.
    return torch.float16 if largest < torch.finfo(torch.float16).max / 2 else torch.bfloat16


def save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights as `dtype`, tokenizer, template and generation config into `folder`."""
    model.generation_config = generation_config(tokenizer, model.generation_config)
    model.to(dtype).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def count_parameters(model: Any) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def versions() -> dict[str, str]:
    """Return the versions of the libraries that made a model."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}


def write_card(folder: Path, *, title: str, facts: dict[str, Any]) -> None:
    """Write a model card and the same facts as JSON."""
    (folder / "training.json").write_text(json.dumps(facts, indent=1))
    lines = [f"# {title}", "", f"Made with fusion-tui by a `{facts['type']}` job.", ""]
    for key in ("base_model", "dataset", "dataset_sha256"):
        lines.append(f"- {key.replace('_', ' ')}: `{facts[key]}`")
    result = facts["result"]
    lines += [
        f"- perplexity on held-out rows: {result['ppl_baseline']:.3f} before, {result['ppl_final']:.3f} after",
        f"- parameters: {result['params_after']:,}",
        "",
        "## Settings as resolved",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts["hyperparams"].items()),
        "",
        "## Versions",
        "",
        *(f"- {name} {number}" for name, number in facts["versions"].items()),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))
