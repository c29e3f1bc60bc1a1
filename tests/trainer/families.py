"""Tiny models of several families with random weights, made from a config, and documents to feed them."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers
from torch.nn import functional

from engine.trainer.data.batch import IGNORED, Document

VOCABULARY = 97
WINDOW = 8
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
# No dropout: what is compared must not be random.
_STILL = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}),
    "llama-plain-heads": ("LlamaConfig", {**_COMMON, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": WINDOW}),
    "gemma3": ("Gemma3TextConfig", {**_GROUPED, "head_dim": 8, "sliding_window": WINDOW}),
    "phi": ("PhiConfig", _COMMON),  # its head has a bias
    "granite": ("GraniteConfig", {**_GROUPED, "logits_scaling": 2.0}),
    "gpt2": ("GPT2Config", {**_GPT, **_ENDS, **_STILL}),
    "gptj": ("GPTJConfig", {**_GPT, **_ENDS, **_STILL, "rotary_dim": 4}),
    "gemma2": ("Gemma2Config", {**_GROUPED, "head_dim": 8, "sliding_window": WINDOW}),
    "gpt-oss": (
        "GptOssConfig",
        {**_GROUPED, "intermediate_size": 32, "head_dim": 8, "num_local_experts": 4, "sliding_window": WINDOW},
    ),
    "bloom": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_ENDS}),
    "falcon": ("FalconConfig", {**_COMMON, "alibi": True, "new_decoder_architecture": False}),
    "lfm2": ("Lfm2Config", {**_GROUPED, "layer_types": ["conv", "full_attention"]}),
}


def make(family: str, **changes: Any) -> Any:
    """Return a causal language model in fp32, ready to judge, whose attention looks anything but even."""
    kind, settings = CONFIGS[family]
    config = getattr(transformers, kind)(**{**settings, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # At their first size a tiny model's weights hardly tell one token from another.
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def document(size: int, *, seed: int, beginning: list[int] | None = None, context: int = 1) -> Document:
    """Return a document of `size` random tokens behind a beginning; the beginning and `context` tokens do not learn."""
    rng = random.Random(seed)
    start = beginning or []
    ids = start + [rng.randrange(3, VOCABULARY) for _ in range(size)]
    untrained = len(start) + context
    return Document(ids, [IGNORED] * untrained + ids[untrained:])


BEGINNING = document(20, seed=99).ids
APART = [document(25, seed=1), document(3, seed=2), document(30, seed=3, context=9), document(12, seed=4)]
SHARING = [
    document(12, seed=5, beginning=BEGINNING, context=0),  # its first own token is predicted from the beginning's last
    document(25, seed=6),
    document(7, seed=7, beginning=BEGINNING),
    document(19, seed=8, beginning=BEGINNING, context=4),
]


def loss_alone(model: Any, one: Document) -> torch.Tensor:
    """Return the summed loss of one document as the model's own forward pass and torch give it."""
    logits = model(input_ids=torch.tensor([one.ids])).logits[0, :-1].float()
    return functional.cross_entropy(logits, torch.tensor(one.labels[1:]), ignore_index=IGNORED, reduction="sum")
