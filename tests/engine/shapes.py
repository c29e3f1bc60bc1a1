"""Public configurations of known models, as in their config.json, and the parameters that each is known to have."""

from __future__ import annotations

from typing import Any

QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
LLAMA_3B: dict[str, Any] = {
    **LLAMA_8B,
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "head_dim": 128,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}
LLAMA_2_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
MISTRAL_7B: dict[str, Any] = {**LLAMA_8B, "model_type": "mistral", "vocab_size": 32000}
SMOLLM2_135M: dict[str, Any] = {
    **LLAMA_8B,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
GEMMA_2_2B: dict[str, Any] = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "vocab_size": 256000,
    "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": 30.0,
}
PHI_3_MINI: dict[str, Any] = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 8192,
    "vocab_size": 32064,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
PHI_2: dict[str, Any] = {
    "model_type": "phi",
    "hidden_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "intermediate_size": 10240,
    "vocab_size": 51200,
    "hidden_act": "gelu_new",
    "qk_layernorm": False,
    "tie_word_embeddings": False,
}
GPT_2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
    "activation_function": "gelu_new",
}
PYTHIA_160M: dict[str, Any] = {
    "model_type": "gpt_neox",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 50304,
    "hidden_act": "gelu",
    "tie_word_embeddings": False,
}

PARAMETERS = [
    (QWEN_7B, 7_615_616_512),
    (LLAMA_8B, 8_030_261_248),
    (LLAMA_3B, 3_212_749_824),
    (LLAMA_2_7B, 6_738_415_616),
    (MISTRAL_7B, 7_241_732_096),
    (SMOLLM2_135M, 134_515_008),
    (GEMMA_2_2B, 2_614_341_888),
    (PHI_3_MINI, 3_821_079_552),
    (PHI_2, 2_779_683_840),
    (GPT_2, 124_439_808),
    (PYTHIA_160M, 162_322_944),
]
