"""What a model is made of, read from its config.json alone: layers, widths, and how many weights of each kind.

The rule: a family is in the table or it has no shape. The counts are exact, for a guessed one would make a memory plan
that nobody should trust; what cannot be counted yet is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engine.errors import EngineError


class ShapeUnknown(EngineError):
    """A model whose config.json does not tell how many weights it has, with the file and the reason."""


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions. Widths are elements, counts are weights; `linears` are (inputs, outputs) of the linear
    maps of one layer, which is what adapters and 4 bits apply to; the head is not among them."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    tied: bool
    gated: bool  # an MLP of gate, up and down; else of up and down
    fused: bool  # query, key and value are one matrix, and so are gate and up
    norms: int  # in a layer, each as wide as the hidden state
    rms: bool  # they are root-mean-square norms, which work in fp32
    query_norm: bool  # queries and keys have one too
    activation: str
    plain_head: bool  # logits are the head's product and nothing more, so they can be made in chunks
    linears: tuple[tuple[int, int], ...]
    embedding: int  # tokens, and positions where they are learned
    other: int  # norms and biases
    uneven: bool = False  # the MLPs differ in width, and `mlp` is what they have on average

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads together, which is that of the values."""
        return self.kv_heads * self.head_dim

    @property
    def linear(self) -> int:
        """Weights of the linear maps of all layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def head(self) -> int:
        """Weights of the output head that are not those of the embedding."""
        return 0 if self.tied else self.vocab * self.hidden

    @property
    def params(self) -> int:
        """Number of parameters, tied ones once."""
        return self.linear + self.embedding + self.head + self.other

    @property
    def layer(self) -> int:
        """Weights of one layer, of decoders without a bias in their last norm or their head."""
        return (self.linear + self.other - self.hidden) // self.layers

    def resized(self, *, layers: int | None = None, mlp: int | None = None) -> Shape:
        """Return the shape with so many layers and so wide a gated MLP; biases of the MLP are counted as before."""
        layers, mlp = layers or self.layers, mlp or self.mlp
        linears = (*self.linears[:-3], (self.hidden, mlp), (self.hidden, mlp), (mlp, self.hidden))
        norms = self.layer - self.linear // self.layers
        return replace(self, layers=layers, mlp=mlp, linears=linears, other=layers * norms + self.hidden)

    def adapter(self, rank: int) -> int:
        """Weights of LoRA adapters of this rank on every linear map of the layers."""
        return rank * self.layers * sum(inputs + outputs for inputs, outputs in self.linears)


@dataclass(frozen=True)
class _Family:
    """What a config.json of this family leaves unsaid. Biases: `asked` means as attention_bias and mlp_bias say."""

    tied: bool = False
    kv_heads: int | None = None  # where the config gives none; None: as many as query heads
    head_dim: int | None = None  # likewise; None: hidden / heads
    gated: bool = True  # gate, up and down; else up and down
    fused: bool = False  # query, key and value are one matrix, and so are gate and up
    norms: int = 2  # in a layer, each as wide as the hidden state
    norm_bias: bool = False
    query_norm: Literal["", "head", "all"] = ""  # a norm over each head's, or all heads', queries and keys
    attention_bias: Literal["", "inputs", "all", "asked"] = "asked"
    mlp_bias: Literal["", "all", "asked"] = "asked"
    head_bias: bool = False
    activation: str = "silu"
    asked: bool = False  # what attention_bias and mlp_bias are where the config leaves them out


_GEMMA = _Family(tied=True, kv_heads=16, head_dim=256, mlp_bias="", activation="gelu_pytorch_tanh")
_GPT = _Family(gated=False, norm_bias=True, attention_bias="all", mlp_bias="all", activation="gelu")

FAMILIES: dict[str, _Family] = {
    "llama": _Family(),
    "granite": _Family(),
    "mistral": _Family(kv_heads=8, attention_bias="", mlp_bias=""),
    "qwen2": _Family(kv_heads=32, attention_bias="inputs", mlp_bias=""),
    "qwen3": _Family(kv_heads=32, head_dim=128, query_norm="head", mlp_bias=""),
    "smollm3": _Family(tied=True, kv_heads=4),
    "olmo2": _Family(query_norm="all", mlp_bias=""),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, kv_heads=4, norms=4),
    "gemma3_text": replace(_GEMMA, kv_heads=4, norms=4, query_norm="head"),
    "phi": replace(_GPT, norms=1, head_bias=True, activation="gelu_new"),
    "phi3": _Family(fused=True, attention_bias="", mlp_bias=""),
    "gpt2": replace(_GPT, tied=True, fused=True, activation="gelu_new"),
    "gpt_neox": replace(_GPT, fused=True, attention_bias="asked", asked=True),
    "starcoder2": replace(_GPT, tied=True, kv_heads=2, attention_bias="asked", mlp_bias="asked", asked=True),
}

_OLD_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
_ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function")
_SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # Gemma 2; Cohere; Granite
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")


def read(folder: Path) -> Shape:
    """Return the shape of the model in `folder`, which need hold no more than a config.json. Raises ShapeUnknown."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise ShapeUnknown(f"{file} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise ShapeUnknown(f"{file} is not valid JSON ({error}).") from None
    if not isinstance(config, dict):
        raise ShapeUnknown(f"{file} is not a JSON object.")
    try:
        return of_config(config)
    except ShapeUnknown as error:
        raise ShapeUnknown(f"{file}: {error}") from None


def of_config(config: Mapping[str, Any]) -> Shape:
    """Return the shape that a model's configuration describes. Raises ShapeUnknown."""
    name = str(config.get("model_type", ""))
    if any(config.get(key) for key in _EXPERTS):
        raise ShapeUnknown(f"'{name}' is a mixture of experts, whose memory cannot be planned yet.")
    if config.get("qk_layernorm"):
        raise ShapeUnknown(f"'{name}' with qk_layernorm cannot be planned yet.")
    if config.get("quantization_config"):
        raise ShapeUnknown("the weights are quantised already; use the 16-bit model and load_in_4bit.")
    family = FAMILIES.get(name)
    if family is None:
        raise ShapeUnknown(f"the memory of model_type '{name}' cannot be planned yet; known: {', '.join(FAMILIES)}.")
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    layers, vocab = _number(config, "num_hidden_layers"), _number(config, "vocab_size")
    kv_heads = _number(config, "num_key_value_heads", family.kv_heads or heads, null=heads)
    head_dim = _number(config, "head_dim", family.head_dim or max(1, hidden // heads))
    widths = _widths(config, layers)
    mlp = _number(config, "intermediate_size", 4 * hidden if name == "gpt2" else None)
    mlp = round(sum(widths) / layers) if widths else mlp
    tied = config.get("tie_word_embeddings")
    positions = _number(config, "max_position_embeddings") if name == "gpt2" else 0
    shape = Shape(
        family=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=mlp,
        vocab=vocab,
        gated=family.gated,
        fused=family.fused,
        norms=family.norms,
        rms=not family.norm_bias,
        query_norm=bool(family.query_norm),
        activation=str(next((config[key] for key in _ACTIVATIONS if config.get(key)), family.activation)),
        plain_head=not any(config.get(key) for key in _SCALED_LOGITS),
        tied=family.tied if tied is None else bool(tied),
        linears=_linears(family, hidden, heads * head_dim, kv_heads * head_dim, mlp),
        embedding=(vocab + positions) * hidden,
        other=0,
        uneven=len(set(widths)) > 1,
    )
    return replace(shape, other=_other(config, family, shape))


def _number(config: Mapping[str, Any], key: str, default: int | None = None, *, null: int | None = None) -> int:
    """Return a positive whole number of the config under its name of today or of before."""
    names = [name for name in (key, _OLD_NAMES.get(key, key)) if name in config]
    value = config[names[0]] if names else default
    if value is None:
        value = default if null is None else null
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ShapeUnknown(f"{key} is {value!r}, not a positive whole number.")
    return value


def _widths(config: Mapping[str, Any], layers: int) -> list[int]:
    """Return the MLP's width in each layer, where a contract job of layout targeted left them different; else none."""
    widths = config.get("mlp_widths") or []
    counted = isinstance(widths, list) and all(type(width) is int and width > 0 for width in widths)
    if counted and len(widths) in (0, layers):
        return list(widths)
    raise ShapeUnknown(f"mlp_widths does not give one positive whole number for each of the {layers} layers.")


def _linears(family: _Family, hidden: int, query: int, key_value: int, mlp: int) -> tuple[tuple[int, int], ...]:
    if family.fused:
        attention = [(hidden, query + 2 * key_value)]
        up = [(hidden, 2 * mlp if family.gated else mlp)]
    else:
        attention = [(hidden, query), (hidden, key_value), (hidden, key_value)]
        up = [(hidden, mlp)] * (2 if family.gated else 1)
    return (*attention, (query, hidden), *up, (mlp, hidden))


def _other(config: Mapping[str, Any], family: _Family, shape: Shape) -> int:
    """Return the number of weights in norms and biases."""
    whole = config.get("use_bias")  # one switch for all, where a family has it
    unsaid = family.asked if whole is None else bool(whole)
    attention, feed = family.attention_bias, family.mlp_bias
    if attention == "asked":
        attention = "all" if config.get("attention_bias", unsaid) else ""
    if feed == "asked":
        feed = "all" if config.get("mlp_bias", unsaid) else ""
    inputs = shape.query + 2 * shape.key_value
    norm = shape.hidden * (2 if family.norm_bias else 1)
    layer = family.norms * norm
    layer += {"": 0, "head": 2 * shape.head_dim, "all": shape.query + shape.key_value}[family.query_norm]
    layer += {"": 0, "inputs": inputs, "all": inputs + shape.hidden}[attention]
    layer += (2 if family.gated else 1) * shape.mlp + shape.hidden if feed else 0
    return shape.layers * layer + norm + (shape.vocab if family.head_bias else 0)
