"""Text that a model writes itself: what it calibrates on, what it is held to, and what it is judged by for forgetting.

A model's own text serves as calibration data no worse than text from its training set (Ji et al. 2024, arXiv
2410.17711), and there is always some.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

FREQUENT = 5000  # of a BPE vocabulary in the order of its merges: the first tokens are the most frequent
OPENING_TOKENS = 4
# Share of the sequences that each of those beginnings gets; the rest begin with frequent tokens, each with its own. On
# SmolLM2-135M without 30 % of its neurons, statistics of which 0.2 came from texts that begin a conversation and 0.55
# from those with random beginnings gave 1.19 times the perplexity on chat rows and 1.73 times on a licence; with 0.4
# and 0.27 it was 1.36 and 1.73, with 0.6 and 0.15 it was 1.42 and 1.78.
OPENED = 0.2
DROPPED = 0.2  # share with the highest perplexity: where sampling went astray
# Sequences at a time: a step reads every weight once, however many they are.
BATCH = 64
ROOM_BYTES = 2**30  # for the keys and values of a batch, which is smaller where they take more
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


def _batches(
    tokenizer: Any, vocabulary: int, count: int, *, size: int, longest: int, seed: int
) -> Iterator[list[list[int]]]:
    """Yield `count` openers in batches of equal length: `OPENED` of them of each kind that there is, the rest random.

    Of one that is longer than `longest` tokens, as templates with a long system prompt are, the end is taken.
    """
    rng, special = random.Random(seed), set(tokenizer.all_special_ids)  # noqa: S311
    frequent = [token for token in range(min(FREQUENT, vocabulary)) if token not in special]
    kinds = [opener[-longest:] for opener in openers(tokenizer, vocabulary)]
    shares = [int(OPENED * count)] * len(kinds)
    for opener, share in zip(kinds, shares, strict=True):
        for begin in range(0, share, size):
            yield [opener] * min(size, share - begin)
    rest = count - sum(shares)
    for begin in range(0, rest, size):
        yield [rng.choices(frequent, k=min(OPENING_TOKENS, longest)) for _ in range(min(size, rest - begin))]


class _Room(DynamicLayer):
    """Keys and values of one layer [b, heads, length, d], in room that is there from the start: nothing is copied when
    a token is added, and attention reads what is filled and no more."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length, self._filled = length, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in new keys and values; return all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (
                new.new_empty(*new.shape[:2], self._length, new.shape[3]) for new in (key_states, value_states)
            )
        begin, self._filled = self._filled, self._filled + key_states.shape[-2]
        self.keys[:, :, begin : self._filled] = key_states
        self.values[:, :, begin : self._filled] = value_states
        return self.keys[:, :, : self._filled], self.values[:, :, : self._filled]

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        return self._filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the keys that so many more queries will see, and the place of the first."""
        return self._filled + query_length, 0


def batch_rows(model: Any, length: int) -> int:
    """Return how many sequences of `length` tokens are written at once."""
    config = model.config.get_text_config()
    heads = config.num_key_value_heads or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * config.num_hidden_layers * heads * width * length * model.dtype.itemsize
    return max(1, min(BATCH, ROOM_BYTES // each))


def _continued(
    model: Any, given: torch.Tensor, length: int, temperature: torch.Tensor | float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return openers [b, n] continued at their temperatures [b, 1] to [b, length], and the mean surprise [b], in nats,
    of the tokens that were written, by the distribution that they were drawn from."""
    ids = torch.empty(len(given), length, dtype=torch.long, device=given.device)
    begin = given.shape[1]
    ids[:, :begin] = given
    surprise = torch.zeros(len(given), device=given.device)
    cache = Cache(layers=[_Room(length) for _ in model.get_decoder().layers])
    seen = 0
    for place in range(begin, length):
        out = model(input_ids=ids[:, seen:place], past_key_values=cache, use_cache=True, logits_to_keep=1)
        seen = place
        chances = (out.logits[:, -1].float() / temperature).softmax(-1)
        # The inverse of the distribution function: on a CPU a tenth of the time of torch.multinomial.
        below = chances.cumsum(-1)
        drawn = torch.searchsorted(below, torch.rand_like(below[:, :1]) * below[:, -1:], right=True)
        drawn.clamp_(max=below.shape[1] - 1)
        surprise -= chances.gather(1, drawn).clamp_min(1e-30).log()[:, 0]
        ids[:, place] = drawn[:, 0]
    return ids, surprise / max(length - begin, 1)


@torch.no_grad()
def write(
    model: Any,
    tokenizer: Any,
    device: torch.device,
    *,
    count: int,
    length: int,
    seed: int,
    temperatures: Sequence[float] = (1.0,),
    batch_size: int | None = None,
    tell: Callable[[int, int], object] = lambda done, all: None,
) -> list[list[int]]:
    """Return four fifths of `count` sequences of `length` tokens, sampled at `temperatures` in turn: of each those
    that the model finds likeliest. The same seed gives the same text on the same device; the caller's random numbers
    stay as they are.

    A text that ends is followed by the next, as in training: every sequence has its full length. `tell` hears how many
    of all are written, at the end of each batch; what it raises ends the writing.
    """
    training, vocabulary = model.training, model.get_input_embeddings().num_embeddings
    model.eval()
    written: list[tuple[float, list[int]]] = []
    heat = torch.tensor(temperatures, device=device)
    size = batch_size or batch_rows(model, length)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for prompts in _batches(tokenizer, vocabulary, count, size=size, longest=max(length // 2, 1), seed=seed):
            turn = torch.arange(len(written), len(written) + len(prompts), device=device) % len(heat)
            ids, surprise = _continued(model, torch.tensor(prompts, device=device), length, heat[turn, None])
            written += zip(surprise.tolist(), ids.tolist(), strict=True)
            tell(len(written), count)
    model.train(training)
    kept = sorted(
        number for first in range(len(heat)) for number in _likeliest(written, range(first, len(written), len(heat)))
    )
    return [written[number][1] for number in kept]


def _likeliest(written: list[tuple[float, list[int]]], numbers: range) -> list[int]:
    """Return those of these sequences that are left when the most surprising are dropped."""
    ordered = sorted(numbers, key=lambda number: written[number][0])
    return ordered[: max(1, round(len(ordered) * (1 - DROPPED)))]
