"""Judging a model: loss and perplexity on held-out rows, and a sample of what it writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional

from engine import rows
from engine.rows import Row
from engine.trainer import device as devices
from engine.trainer.batch import IGNORED, Batch

SAMPLE_TOKENS = 48


def summed_loss(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Return the cross-entropy in nats, summed over the batch's targets.

    The head is applied only where some sequence has a target, so the logits of context and padding are never made.
    """
    ids = batch.input_ids.to(device)
    positions = batch.position_ids.to(device)
    # The token at position t is predicted by the hidden state at t - 1.
    targets = batch.labels[:, 1:].to(device)
    kept = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    with devices.autocast(model, device):
        logits = model(input_ids=ids, position_ids=positions, logits_to_keep=kept, use_cache=False).logits
    chosen = targets[:, kept]
    return functional.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]), chosen.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )


@torch.no_grad()
def mean_loss(model: Any, batches: Iterable[Batch], device: torch.device) -> float:
    """Return the mean cross-entropy per target token in nats; its exponential is the perplexity."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        total += float(summed_loss(model, batch, device))
        count += batch.targets
    model.train(training)
    return total / max(count, 1)


def sample_prompt(tokenizer: Any, row: Row) -> tuple[str, str]:
    """Return (the prompt as a user sees it, the prompt as the model sees it) from a held-out row."""
    if row.shape == rows.MESSAGES:
        messages = row.fields["messages"]
        answers = (i for i, message in enumerate(messages) if i and message["role"] == "assistant")
        # Where the assistant alone speaks there is no prompt in the row: templates take no empty conversation.
        asked = messages[: next(answers, 0)] or [{"role": "user", "content": "Hello."}]
        return asked[-1]["content"], tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    if row.shape == rows.PROMPT_COMPLETION:
        return row.fields["prompt"], row.fields["prompt"]
    words = " ".join(row.fields["text"].split()[:12])[:200]  # not every language puts spaces between words
    return words, words


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompt: str, device: torch.device) -> str:
    """Return the model's most likely continuation of `prompt`, up to 48 tokens."""
    training = model.training
    model.eval()
    encoded = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(device)
    output = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=SAMPLE_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.train(training)
    text: str = tokenizer.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()
