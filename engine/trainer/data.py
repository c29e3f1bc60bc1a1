"""From rows to packed token sequences, with a mask of what is trained.

The rule: the order of training is a pure function of (seed, epoch, step); nothing is consumed, so resuming
needs the step and nothing else. No row is lost in silence: a row that cannot be trained on stops the job.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import rows
from engine.rows import Row, RowError
from engine.trainer.batch import IGNORED, Batch, Document, collate

VALIDATION_ROWS_AT_MOST = 500

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Rendered:
    """A row as text, with the spans of characters that are trained."""

    text: str
    spans: list[tuple[int, int]]
    special: bool  # whether the tokenizer adds its own beginning, and an end-of-text follows


def render_chat(tokenizer: Any, messages: list[dict[str, Any]]) -> Rendered:
    """Render a conversation with the tokenizer's own template and find what the assistant wrote in it.

    The span of an answer is what the template adds for it: the difference between the text up to the answer (with
    its generation prompt) and the text that includes it. Raises RowError where the template fails or rewrites
    earlier turns, so that no such difference exists.
    """

    def apply(part: list[dict[str, Any]], *, prompt: bool = False) -> str:
        try:
            text: str = tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # noqa: BLE001  (templates are programs: they raise what they like)
            raise RowError(f"the chat template refuses this conversation ({error})") from None
        return text

    def opening(text: str) -> str:
        """Return what stands before the words of an assistant who speaks first: templates need not take no message."""
        turn = [{"role": "user", "content": "?"}]
        header = apply(turn, prompt=True)[len(apply(turn)) :]
        return text[: text.index(header) + len(header)] if header in text else ""

    whole = apply(messages)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        after = apply(messages[: index + 1])
        before = apply(messages[:index], prompt=True) if index else opening(after)
        if not (after.startswith(before) and whole.startswith(after.rstrip())):
            raise RowError("the chat template rewrites earlier turns, so the answers cannot be told from the context")
        spans.append((len(before), len(after.rstrip())))
    return Rendered(whole, spans, special=False)


def render(tokenizer: Any, row: Row) -> Rendered:
    """Return a row as text with its trained spans: answers of a chat, the completion, or the whole text."""
    if row.shape == rows.MESSAGES:
        return render_chat(tokenizer, row.fields["messages"])
    if row.shape == rows.PROMPT_COMPLETION:
        text = row.fields["prompt"] + row.fields["completion"]
        return Rendered(text, [(len(row.fields["prompt"]), len(text))], special=True)
    return Rendered(row.fields["text"], [(0, len(row.fields["text"]))], special=True)


def tokenize(tokenizer: Any, rendered: Rendered) -> Document:
    """Turn a rendered row into a document of any length."""
    encoded = tokenizer(
        rendered.text, add_special_tokens=rendered.special, return_offsets_mapping=True, return_attention_mask=False
    )
    ids: list[int] = list(encoded["input_ids"])
    trained = [
        start < end and any(start < stop and end > begin for begin, stop in rendered.spans)
        for start, end in encoded["offset_mapping"]
    ]
    eos = tokenizer.eos_token_id
    if rendered.special and eos is not None:
        if ids and ids[-1] == eos:
            trained[-1] = True
        else:
            ids.append(eos)
            trained.append(True)
    labels = [token if use else IGNORED for token, use in zip(ids, trained, strict=True)]
    return Document(ids, labels)


def _fit(document: Document, shape: str, seq_len: int) -> list[Document]:
    """Cut a document to `seq_len`: text goes on in further documents, a conversation or prompt is truncated."""
    if len(document.ids) <= seq_len:
        return [document]
    if shape != rows.TEXT:
        return [Document(document.ids[:seq_len], document.labels[:seq_len], truncated=True)]
    starts = range(0, len(document.ids), seq_len)
    parts = [Document(document.ids[i : i + seq_len], document.labels[i : i + seq_len]) for i in starts]
    return [part for part in parts if len(part.ids) > 1]


def encode(tokenizer: Any, row: Row, seq_len: int) -> list[Document]:
    """Return a row's documents, each at most `seq_len` tokens. Raises RowError, naming the row's line."""
    try:
        documents = _fit(tokenize(tokenizer, render(tokenizer, row)), row.shape, seq_len)
    except RowError as error:
        raise RowError(error.message, row.line) from None
    # The first token has no context to be predicted from, so it never counts.
    if not any(label != IGNORED for document in documents for label in document.labels[1:]):
        cut = " after truncation to seq_len; raise seq_len" if any(doc.truncated for doc in documents) else ""
        raise RowError(f"has no token to train on{cut}", row.line)
    return documents


def split(all_rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return (training rows, validation rows): a seeded sample of at least one row and at most 500 is held out.

    Raises RowError where there are fewer than two rows.
    """
    if len(all_rows) < 2:
        raise RowError("the dataset has one row; two are needed, one to train on and one to evaluate on")
    held_out = min(max(1, round(len(all_rows) * fraction)), VALIDATION_ROWS_AT_MOST, len(all_rows) - 1)
    chosen = set(random.Random(seed).sample(range(len(all_rows)), held_out))  # noqa: S311  (a split, not a secret)
    training = [row for index, row in enumerate(all_rows) if index not in chosen]
    return training, [row for index, row in enumerate(all_rows) if index in chosen]


def pack(documents: Sequence[Document], seq_len: int) -> list[list[Document]]:
    """Put documents into sequences of at most `seq_len` tokens: best fit, longest first."""
    bins: list[list[Document]] = []
    open_bins: list[tuple[int, int]] = []  # (room left, index), sorted
    for document in sorted(documents, key=lambda document: len(document.ids), reverse=True):
        size = len(document.ids)
        place = bisect.bisect_left(open_bins, (size, -1))
        if place < len(open_bins):
            room, index = open_bins.pop(place)
        else:
            room, index = seq_len, len(bins)
            bins.append([])
        bins[index].append(document)
        if room - size > 1:
            bisect.insort(open_bins, (room - size, index))
    return bins


@dataclass(frozen=True)
class Corpus:
    """Everything to train and evaluate on, packed."""

    training: list[list[Document]]
    validation: list[list[Document]]
    training_rows: int
    validation_rows: list[Row]
    truncated_rows: int
    training_tokens: int
    pad: int

    def sequences(self, first: int, count: int, seed: int) -> list[list[Document]]:
        """Return training sequences number `first` … `first + count - 1` of the endless, shuffled order."""
        size = len(self.training)
        wanted = range(first, first + count)
        orders = {epoch: self._order(epoch, seed) for epoch in {index // size for index in wanted}}
        return [self.training[orders[index // size][index % size]] for index in wanted]

    def _order(self, epoch: int, seed: int) -> list[int]:
        order = list(range(len(self.training)))
        random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311  (an order, not a secret)
        return order

    def validation_batches(self, size: int) -> Iterator[Batch]:
        """Yield the validation sequences in batches of `size`."""
        for start in range(0, len(self.validation), size):
            yield collate(self.validation[start : start + size], self.pad)


def load(path: Path, tokenizer: Any, *, seq_len: int, val_fraction: float, seed: int) -> Corpus:
    """Read, split, tokenise and pack a dataset. Raises RowError, naming the line, at a row that cannot be used."""
    training_rows, validation_rows = split(list(rows.read(path)), val_fraction, seed)
    training = [document for row in training_rows for document in encode(tokenizer, row, seq_len)]
    validation = [document for row in validation_rows for document in encode(tokenizer, row, seq_len)]
    return Corpus(
        training=pack(training, seq_len),
        validation=pack(validation, seq_len),
        training_rows=len(training_rows),
        validation_rows=validation_rows,
        truncated_rows=sum(document.truncated for document in [*training, *validation]),
        training_tokens=sum(len(document.ids) for document in training),
        pad=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0),
    )
