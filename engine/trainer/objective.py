"""What is minimised: the cross-entropy of the labelled tokens, for any causal language model.

The rule: the quick way (attention inside documents, chunked head on labelled rows) is taken only for a model on which
it was seen to give what the model's own forward pass gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from engine.trainer import attention, cross_entropy, models
from engine.trainer import device as devices
from engine.trainer.data.batch import IGNORED, Batch, Document, collate_flat, collate_rows

AGREEMENT = 2e-3  # nats per token; in bf16 two orders of summation differ by some 1e-4
STIR = 1e-5  # of a loss; what may be left of a document's neighbour in it
PROBE_TOKENS = 48

# How documents are laid out: in one row, each attended to by itself; packed rows, told apart by their positions; a
# padded row for each. From quick to slow.
FLAT, PACKED, APART = "flat", "packed", "apart"


@dataclass(frozen=True)
class Objective:
    """The loss of `model` on `device`; `direct`: its head may be used on the labelled rows alone."""

    model: Any
    device: torch.device
    pad: int
    layout: str
    direct: bool
    noise: float = 0.0

    @classmethod
    def of(
        cls, model: Any, device: torch.device, pad: int, sample: Sequence[Document], *, noise: float = 0.0
    ) -> Objective:
        """Return the quickest objective that agrees with the model's own forward pass on each document of `sample`.

        `noise` is NEFTune's alpha (Jain et al. 2023, arXiv 2310.05914), added to the embeddings in training.
        """
        base = models.causal(model)
        given = base.config._attn_implementation
        documents = [Document(one.ids[:PROBE_TOKENS], one.ids[:PROBE_TOKENS]) for one in sample if len(one.ids) > 1]
        training = model.training
        model.eval()
        base.set_attn_implementation(given)
        apart = cls(model, device, pad, APART, direct=False, noise=noise)
        with torch.no_grad():
            alone = apart._mean(documents[:1])
            for layout in (FLAT, PACKED):
                if layout == FLAT and not attention.supports(base):
                    continue
                base.set_attn_implementation(attention.NAME if layout == FLAT else given)
                quick = cls(model, device, pad, layout, direct=_has_plain_head(base), noise=noise)
                if quick._agrees(documents, alone):
                    model.train(training)
                    return quick
        base.set_attn_implementation(given)
        model.train(training)
        return apart

    def _agrees(self, documents: Sequence[Document], alone: float) -> bool:
        """Say whether the first document has the loss it has alone, and the very same whatever stands before it."""
        judged = documents[0]
        other = documents[-1].ids if len(documents) > 1 else judged.ids[::-1]
        found = []
        for before in (other, [*other[::-1]]):
            try:
                found.append(self._mean([Document(before, [IGNORED] * len(before)), judged]))
            except (TypeError, ValueError, AttributeError, ImportError, RuntimeError):
                return False  # a layer that takes no layout, a card without the kernel
        return abs(found[0] - alone) < AGREEMENT and abs(found[1] - found[0]) <= STIR * abs(found[0])

    def _mean(self, documents: Sequence[Document]) -> float:
        batch = self.collate([list(documents)])
        return float(self.summed(batch)) / max(batch.target_count, 1)

    def collate(self, sequences: Sequence[list[Document]]) -> Batch:
        """Lay packed sequences out as this objective takes them."""
        if self.layout == FLAT:
            return collate_flat(sequences)
        if self.layout == APART:
            sequences = [[document] for sequence in sequences for document in sequence]
        return collate_rows(sequences, self.pad)

    def summed(self, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy in nats, summed over the batch's targets."""
        rows, targets = self.read(batch), batch.targets.to(self.device)
        if not self.direct:
            return functional.cross_entropy(rows.float(), targets, reduction="sum")
        return cross_entropy.summed(rows, *self.head(), targets)

    def read(self, batch: Batch) -> torch.Tensor:
        """Return what predicts each target: hidden states [n, h] for the head where this is `direct`, else logits."""
        ids, positions = batch.input_ids.to(self.device), batch.position_ids.to(self.device)
        sources = batch.sources.to(self.device)
        base = models.causal(self.model)
        given: dict[str, Any] = {"position_ids": positions, "use_cache": False}
        if batch.layout:
            given["documents"] = batch.layout.to(self.device)
        if self.noise and self.model.training:
            given["inputs_embeds"] = self._noisy(base.get_input_embeddings()(ids), positions)
        else:
            given["input_ids"] = ids
        with devices.autocast(self.model, self.device):
            hidden = base.get_decoder()(**given).last_hidden_state if self.direct else base(**given).logits
        rows = hidden.flatten(0, 1).index_select(0, sources)
        return rows.to(devices.multiplied_in(self.model, self.device)) if self.direct else rows

    def head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the head's weight [V, h] and bias, as they are multiplied."""
        head = models.causal(self.model).get_output_embeddings()
        dtype = devices.multiplied_in(self.model, self.device)
        return head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)

    def _noisy(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Add uniform noise of NEFTune's size, alpha / √(tokens of a document · h), to embeddings [rows, T, h]."""
        documents = max(int((positions == 0).sum()), 1)
        size = self.noise / math.sqrt(positions.numel() / documents * embedded.shape[-1])
        return embedded + torch.empty_like(embedded).uniform_(-size, size)


def _has_plain_head(model: Any) -> bool:
    """Say whether logits are the head's product with the decoder's hidden states and nothing more."""
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    scaled = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # Gemma 2 and 3; Cohere; Granite
    return (
        isinstance(head, torch.nn.Linear)
        and head.weight.dtype.is_floating_point
        and not any(getattr(config, name, None) for name in scaled)
    )
