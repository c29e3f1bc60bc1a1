"""Healing: what is left learns to say what the original says, on the text that the original wrote.

Forward KL at temperature 1 and no cross-entropy (as in distillation, Hinton et al. 2015, arXiv 1503.02531), through the
loop that every job trains with; adapters learn, and are merged in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from engine.trainer import device as devices
from engine.trainer import divergence, models
from engine.trainer.data import documents
from engine.trainer.data.batch import Batch
from engine.trainer.data.corpora import Corpus
from engine.trainer.data.documents import Packs
from engine.trainer.data.tokens import Tokens
from engine.trainer.lora import ADAPTER
from engine.trainer.objective import Objective
from engine.trainer.run import Run


def corpus(training: Sequence[Sequence[int]], held: Sequence[Sequence[int]], pad: int) -> Corpus:
    """Return token sequences as a corpus: each a pack of its own, every token of which counts."""
    sequences = [*training, *held]
    sizes = np.array([len(one) for one in sequences], np.int64)
    count = len(sequences)
    found = Tokens(
        ids=np.concatenate([np.asarray(one, np.int32) for one in sequences]),
        answers=np.ones(int(sizes.sum()), np.bool_),
        ends=sizes.cumsum(),
        lines=np.arange(1, count + 1, dtype=np.int64),
        places=np.zeros(count, np.int64),
        goes_on=np.zeros(count, np.bool_),
        reasons=np.zeros(count, np.int32),
    )
    fitted = documents.fit(found, seq_len=int(sizes.max()), everything=True)
    return Corpus(
        training=Packs(fitted, [[number] for number in range(len(training))]),
        validation=Packs(fitted, [[number] for number in range(len(training), count)]),
        training_rows=len(training),
        validation_rows=[],
        truncated_rows=0,
        training_tokens=int(sizes[: len(training)].sum()),
        pad=pad,
    )


@dataclass(frozen=True)
class TowardsOriginal(Objective):
    """The divergence of `model` from the original, which is read as this one is."""

    original: Objective | None = None

    @classmethod
    def between(cls, student: Objective, teacher: Any) -> TowardsOriginal:
        """Return the divergence of a student's model from its `teacher`, of the same architecture, which is frozen."""
        base = models.causal(student.model)
        teacher.set_attn_implementation(base.config._attn_implementation)
        teacher.requires_grad_(False)
        return cls(
            model=student.model,
            device=student.device,
            pad=student.pad,
            layout=student.layout,
            direct=student.direct,
            original=replace(student, model=teacher.eval()),
        )

    def summed(self, batch: Batch) -> torch.Tensor:
        """Return KL(original ‖ model) in nats, summed over the batch's targets."""
        assert self.original is not None
        with torch.no_grad():
            said = self.original.read(batch)
        rows = self.read(batch)
        if self.direct:
            return divergence.of_hidden(rows, self.head(), said, self.original.head())
        return divergence.of_logits(rows, said)


def healed(run: Run) -> Any:
    """Return the model of a run that is over, with its adapters; optimiser state and original are given up."""
    run.optimizer.state.clear()
    if isinstance(run.objective, TowardsOriginal) and run.objective.original:
        models.release(run.objective.original.model)
    devices.free_memory(run.device)
    return run.model


@torch.no_grad()
def merge(base: Any, adapted: Any, dtype: torch.dtype) -> Any:
    """Return `base`, on the CPU, with the adapters of `adapted` merged into its weights, added up in fp32."""
    from peft.tuners.lora import LoraLayer

    for name, layer in models.causal(adapted).named_modules():
        if isinstance(layer, LoraLayer):
            weight = base.get_submodule(name).weight
            weight.data = (weight.float() + layer.get_delta_weight(ADAPTER).float().to(weight.device)).to(dtype)
    return base
