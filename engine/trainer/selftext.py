"""Text that a model writes itself: what it calibrates on, what it is held to, and what it is judged by for forgetting.

A model's own text serves as calibration data no worse than text from its training set (Ji et al. 2024, arXiv
2410.17711), and there is always some.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

FREQUENT = 5000  # of a BPE vocabulary in the order of its merges: the first tokens are the most frequent
OPENING_TOKENS = 4
DROPPED = 0.2  # share with the highest perplexity: where sampling went astray
_MARK = "\ue000"


def openers(tokenizer: Any, vocabulary: int) -> list[list[int]]:
    """Return beginnings that say nothing yet: of a text, and of a conversation where there is a template."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    found = [[start if start is not None and start < vocabulary else 0]]
    if tokenizer.chat_template:
        try:
            text = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
        except Exception:  # noqa: BLE001  (a template may refuse what it likes; there are other openers)
            text = ""
        opening = text.partition(_MARK)[0] if _MARK in text else ""
        ids = tokenizer(opening, add_special_tokens=False)["input_ids"]
        if ids:
            found.append(ids)
    return found


def _batches(tokenizer: Any, vocabulary: int, count: int, size: int, seed: int) -> Iterator[list[list[int]]]:
    """Yield `count` openers in batches of equal length: a third each of the kinds that there are."""
    rng, special = random.Random(seed), set(tokenizer.all_special_ids)  # noqa: S311
    frequent = [token for token in range(min(FREQUENT, vocabulary)) if token not in special]
    kinds = openers(tokenizer, vocabulary)
    shares = [count // (len(kinds) + 1)] * len(kinds)
    for opener, share in zip(kinds, shares, strict=True):
        for begin in range(0, share, size):
            yield [opener] * min(size, share - begin)
    rest = count - sum(shares)
    for begin in range(0, rest, size):
        yield [rng.choices(frequent, k=OPENING_TOKENS) for _ in range(min(size, rest - begin))]


@torch.no_grad()
def write(
    model: Any,
    tokenizer: Any,
    device: torch.device,
    *,
    count: int,
    length: int,
    seed: int,
    batch_size: int = 24,
    tell: Callable[[int, int], object] = lambda done, all: None,
) -> list[list[int]]:
    """Return four fifths of `count` sequences of `length` tokens, sampled at temperature 1: those that the model finds
    likeliest. The same seed gives the same text on the same device; the caller's random numbers stay as they are.

    `tell` hears how many of all are written.
    """
    training, vocabulary = model.training, model.get_input_embeddings().num_embeddings
    model.eval()
    written: list[tuple[float, list[int]]] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for prompts in _batches(tokenizer, vocabulary, count, batch_size, seed):
            given = torch.tensor(prompts, device=device)
            ids = model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=length - given.shape[1],
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                # A text that ends is followed by the next, as in training: every sequence has its full length.
                eos_token_id=None,
                pad_token_id=0,
            )
            written += [(_surprise(model, row), row.tolist()) for row in ids]
            tell(len(written), count)
    model.train(training)
    likeliest = sorted(range(len(written)), key=lambda number: written[number][0])
    kept = sorted(likeliest[: max(1, round(len(written) * (1 - DROPPED)))])
    return [written[number][1] for number in kept]


def _surprise(model: Any, ids: torch.Tensor) -> float:
    """Return the mean cross-entropy of a sequence under the model that wrote it."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
    return float(functional.cross_entropy(logits, ids[1:]))
