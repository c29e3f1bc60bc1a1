"""Loading models and tokenizers from local folders or GGUF files, and writing finished ones.

The rule: safetensors in, safetensors out; no code of a model's folder is run and nothing is unpickled.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig, GgufConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from engine import atomic
from engine.data import importing
from engine.errors import Unsupported
from engine.trainer import device as devices
from engine.trainer.contract import targeted
from engine.trainer.data.corpora import CHATML

LOOKED_AT = "What is the sum of one and two? It is three."  # to see which type of 16 bits the activations fit


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


def load_model(folder: Path, dtype: torch.dtype | str) -> Any:
    """Load a causal language model onto the CPU as `dtype` ("auto": as stored). Raises OSError or ValueError."""
    return targeted.loader(folder).from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True
    )


def load_frozen(folder: Path, device: torch.device) -> Any:
    """Load a model whose weights stay as they are onto `device`. Raises OSError, ValueError, InvalidData."""
    usual = devices.compute_dtype(device)
    dtype = devices.frozen_dtype(importing.inspect_model(folder).precision, str(device))
    model = load_model(folder, dtype).to(device)
    if dtype != usual:
        # Files in fp16 may be of a model that was made in bf16, whose activations go beyond it.
        fits = sixteen_bits(model.eval(), load_tokenizer(folder)(LOOKED_AT).input_ids, device) == dtype
        model = model if fits else model.to(usual)
    return model


def load_4bit(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a model with its linear layers in NF4 and the rest as `dtype`, on `device`: a layer at a time, never whole.

    NF4 with double quantisation: Dettmers et al. 2023, arXiv 2305.14314. Raises OSError; Unsupported, with the remedy,
    where this machine or this model has no use for it.
    """
    try:
        import bitsandbytes
    except ImportError:
        raise Unsupported(
            "load_in_4bit needs the package bitsandbytes, which this machine lacks. Set it to false."
        ) from None
    if device.type == "mps":
        raise Unsupported("load_in_4bit does not run on an Apple GPU. Set it to false.")
    model = targeted.loader(folder).from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    if not any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in model.modules()):
        raise Unsupported(
            f"load_in_4bit: {type(model).__name__} has no linear layer besides its head that could be held in 4 bits. "
            "Set load_in_4bit to false."
        )
    return model


def dense(layer: Any) -> torch.Tensor:
    """Return a layer's weight, of a linear one [out, in]: as it is, or expanded from 4 bits."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        kept: torch.Tensor = layer.weight.detach()
        return kept
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, state).view(layer.out_features, layer.in_features)


def causal(model: Any) -> Any:
    """Return the causal language model inside peft's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def set_checkpointing(model: Any, mode: str) -> None:
    """Recompute the activations of no decoder layer (none), every second (selective) or every one (full)."""
    base = causal(model)
    if mode == "none":
        base.gradient_checkpointing_disable()
        return
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = mode == "full" or number % 2 == 0


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
def sixteen_bits(model: Any, ids: list[int], device: torch.device) -> torch.dtype:
    """Return the 16-bit type to publish `model` in: fp16 where its weights and activations fit, else bf16.

    What a short fine-tune adds to a weight is often less than half a step of bf16 there, so rounding takes it away
    again. On SmolLM2-135M after 20 steps of LoRA, the logits of the merged model were off by 1.6 in bf16 and by 0.014
    in fp16, whose steps are eight times finer; but fp16 ends at 65,504, and some models' activations go beyond.
    """
    largest = max(float(parameter.abs().max()) for parameter in model.parameters() if parameter.is_floating_point())

    def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            found = float(output.abs().max())
            largest = max(largest, found if math.isfinite(found) else math.inf)

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        with devices.autocast(model, device):
            model(input_ids=torch.tensor([ids], device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    # Half the range is kept for texts that were not looked at.
    return torch.float16 if largest < torch.finfo(torch.float16).max / 2 else torch.bfloat16


def release(model: Any) -> None:
    """Give up a model's weights, wherever it is still referred to, so that another fits beside what is left."""
    for parameter in model.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        parameter.grad = None


def save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights as `dtype`, tokenizer, template and generation config into `folder`."""
    model.generation_config = generation_config(tokenizer, model.generation_config)
    atomic.step(model.to(dtype).save_pretrained, folder, safe_serialization=True)
    targeted.write_code(model, folder)
    atomic.step(tokenizer.save_pretrained, folder)


def count_parameters(model: Any) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
