"""Judging a model: loss and perplexity on held-out rows, and a sample of what it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from engine.data import rows
from engine.data.rows import Row
from engine.trainer import device as devices
from engine.trainer.data.batch import Document
from engine.trainer.objective import Objective
from engine.trainer.reporter import Reporter
from engine.trainer.run import StopFlag, Stopped

SAMPLE_TOKENS = 48
TELL_EVERY_S = 5.0

Between = Callable[[int, int], object]


def watched(activity: str, reporter: Reporter, stop: StopFlag) -> Between:
    """Say what is being done; return what to call between batches, with the sequences done and those of all.

    It tells now and then how far the evaluation is, and raises Stopped where the run is asked to stop: held-out rows
    may be so many that nobody would wait for their end.
    """
    reporter.activity(activity)
    told = time.monotonic()

    def heard(done: int, whole: int) -> None:
        nonlocal told
        if stop.requested:
            raise Stopped
        if time.monotonic() - told >= TELL_EVERY_S:
            told = time.monotonic()
            reporter.activity(f"{activity} ({done:,} of {whole:,} sequences)")

    return heard


@torch.no_grad()
def mean_loss(
    objective: Objective, sequences: Sequence[list[Document]], size: int, between: Between | None = None
) -> float:
    """Return the mean cross-entropy per target token in nats, `size` sequences at a time; exp of it is perplexity.

    `between` is called between two batches; what it raises ends the evaluation and leaves the model as it was.
    """
    training = objective.model.training
    objective.model.eval()
    total, count = 0.0, 0
    try:
        for start in range(0, len(sequences), size):
            if start and between:
                between(start, len(sequences))
            batch = objective.collate(sequences[start : start + size])
            total += float(objective.summed(batch))
            count += batch.target_count
    finally:
        objective.model.train(training)
    return total / max(count, 1)


def sample_prompt(tokenizer: Any, row: Row) -> tuple[str, str]:
    """Return (the prompt as a user sees it, the prompt as the model sees it) from a held-out row."""
    if row.shape == rows.MESSAGES:
        messages = row.fields["messages"]
        answers = (i for i, message in enumerate(messages) if i and message["role"] == "assistant")
        asked = messages[: next(answers, 0)]
        if all(message["role"] == "system" for message in asked):
            # Where nobody asks before the assistant speaks: templates take no conversation without a question.
            asked = [*asked, {"role": "user", "content": "Hello."}]
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
    with devices.autocast(model, device):
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
