"""Attention inside documents: a packed row is attended to document by document, so crossing is impossible and free.

A mask over a packed row costs the square of the row; this costs the sum of the documents' squares. On SmolLM2-135M,
rows of 1,024 tokens with 14 documents, a layer takes 11 ms in place of 68 on two cores. On a card the same layout goes
to the variable-length kernel of FlashAttention (Dao 2023, arXiv 2307.08691).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "documents"


@dataclass(frozen=True)
class Layout:
    """Where documents lie in one flat row of T tokens.

    Document i has the queries `query_ends[i] … query_ends[i+1]` of the row and the keys `key_ends[i] … key_ends[i+1]`
    of the row gathered by `keys` [int64], or of the row itself where that is None. Its queries are the last of its
    keys: what comes before them is a beginning that it shares with others. Both ends are int32 tensors on the CPU.
    """

    query_ends: torch.Tensor
    key_ends: torch.Tensor
    keys: torch.Tensor | None
    longest_query: int
    longest_key: int

    def to(self, device: torch.device) -> Layout:
        """Return the layout with its tensors where the kernel wants them."""
        if device.type != "cuda":
            return self
        return Layout(
            self.query_ends.to(device, non_blocking=True),
            self.key_ends.to(device, non_blocking=True),
            None if self.keys is None else self.keys.to(device, non_blocking=True),
            self.longest_query,
            self.longest_key,
        )


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    documents: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do: [1, heads, T, d] in, [1, T, heads, d] out.

    Without `documents` (generation) it is plain scaled-dot-product attention of one unpadded sequence.
    """
    if documents is None:
        if attention_mask is None and sliding_window and sliding_window < key.shape[2]:
            # transformers makes no mask for a function that it does not know.
            attention_mask = _mask(query.shape[2], key.shape[2], sliding_window, query.device)
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **rest
        )
        return result
    # Norms that learn in fp32 beside frozen 16 bits leave queries and keys in fp32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if documents.keys is not None:
        key, value = key.index_select(2, documents.keys), value.index_select(2, documents.keys)
    if query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16):
        return _on_card((query, key, value), documents, scaling, sliding_window), None
    return _one_by_one((query, key, value), documents, scaling, sliding_window), None


def _on_card(
    projected: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    documents: Layout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # FlashAttention counts the window without the token itself; causal is a window without a right side, and where
    # there are more keys than queries the last ones meet, which is what a shared beginning needs.
    query, key, value = (tensor[0].transpose(0, 1) for tensor in projected)
    out: Any = varlen_attn(
        query,
        key,
        value,
        documents.query_ends,
        documents.key_ends,
        documents.longest_query,
        documents.longest_key,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],  # after the transposition, too, heads are in the middle
    )
    rows: torch.Tensor = out.unsqueeze(0)
    return rows


@lru_cache(maxsize=64)  # every layer asks for the same few
def _mask(n: int, m: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which of `m` keys each of the last `n` tokens may see, bool [n, m]."""
    mask = torch.ones(n, m, dtype=torch.bool, device=device).tril_(m - n)
    return mask.triu_(m - n - window + 1) if window else mask


def _one_by_one(
    projected: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    documents: Layout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    query, key, value = projected
    query_sizes = documents.query_ends.diff().tolist()
    key_sizes = documents.key_ends.diff().tolist()
    parts = zip(query.split(query_sizes, 2), key.split(key_sizes, 2), value.split(key_sizes, 2), strict=True)
    outputs = []
    for queries, keys, values in parts:
        n, m = queries.shape[2], keys.shape[2]
        mask = _mask(n, m, window, queries.device) if m > n or (window and window < m) else None
        outputs.append(
            functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2)


AttentionInterface.register(NAME, attend)


def supports(model: Any) -> bool:
    """Say whether a model hands its attention to the registered function, and asks nothing of it that is not there."""
    config = model.config.get_text_config()
    return bool(
        getattr(model, "_supports_attention_backend", False)
        and getattr(config, "attn_logit_softcapping", None) is None  # Gemma 2
        and "sinks" not in {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}  # gpt-oss
    )
