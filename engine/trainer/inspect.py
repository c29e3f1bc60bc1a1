"""Show what a model will see of a dataset. Run: python -m engine.trainer.inspect REQUEST, as JSON; answers as JSON.

The rule: the rows go the very way that they go in a job, as far as the batch that the loop is handed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from engine import process
from engine.data.inspection import (
    CONTEXT,
    PADDING,
    TRAINED,
    BadRows,
    Bucket,
    DocumentView,
    Inspection,
    Request,
    SequenceView,
    Stretch,
)
from engine.data.rows import RowError
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.trainer import models
from engine.trainer.data import corpora, documents
from engine.trainer.data.batch import Document, collate_rows
from engine.trainer.data.corpora import Corpus, Source
from engine.trainer.data.documents import Documents
from engine.trainer.data.render import Manner

BUCKETS = 12


def tell(text: str) -> None:
    """Say how far it is, to who started this process."""
    print(f"{process.TELLS}{text}", file=sys.stderr, flush=True)


def stretches(tokenizer: Any, ids: Sequence[int], uses: Sequence[str]) -> tuple[Stretch, ...]:
    """Return the tokens of a document in unbroken stretches of one use."""
    made = []
    for use, group in groupby(zip(ids, uses, strict=True), key=lambda each: each[1]):
        part = [token for token, _ in group]
        made.append(Stretch(use, tuple(part), tokenizer.decode(part, skip_special_tokens=False)))
    return tuple(made)


def views(
    tokenizer: Any, sequences: Sequence[list[Document]], lines: Sequence[list[int]], pad: int
) -> list[SequenceView]:
    """Return a batch as it is laid out in rows for the model; what is trained is read off its targets."""
    batch = collate_rows(sequences, pad)
    uses = np.full(batch.input_ids.numel(), CONTEXT, dtype=object)
    uses[batch.sources.numpy() + 1] = TRAINED
    uses = uses.reshape(batch.input_ids.shape)
    made = []
    for row, sequence in enumerate(sequences):
        ids, at, shown = batch.input_ids[row].tolist(), 0, []
        for document, line in zip(sequence, lines[row], strict=True):
            end = at + len(document.ids)
            parts = stretches(tokenizer, ids[at:end], uses[row, at:end].tolist())
            shown.append(DocumentView(line, len(document.ids), document.truncated, parts))
            at = end
        filling = tuple(ids[at:])
        made.append(SequenceView(tuple(shown), Stretch(PADDING, filling, tokenizer.decode([pad]) if filling else "")))
    return made


def histogram(sizes: np.ndarray[Any, Any]) -> list[Bucket]:
    """Return about a dozen buckets of a round width that hold 99 % of the rows; the last holds all that is longer."""
    if not len(sizes):
        return []
    most, largest = max(int(np.percentile(sizes, 99)), 1), int(sizes.max())
    scale = 10 ** max(math.floor(math.log10(most / BUCKETS)), 0) if most > BUCKETS else 1
    width = next(scale * step for step in (1, 2, 5, 10) if scale * step * BUCKETS >= most)
    edges = [*range(0, most + 1, width), largest + 1]
    counts, _ = np.histogram(sizes, bins=np.array([*edges[:-1], max(edges[-1], edges[-2] + 1)]))
    highs = [*(edge - 1 for edge in edges[1:-1]), max(largest, edges[-2] + width - 1)]
    return [Bucket(low, high, int(count)) for low, high, count in zip(edges[:-1], highs, counts, strict=True)]


def first_batch(corpus: Corpus, fitted: Documents, tokenizer: Any, settings: FinetuneHyperparams) -> list[SequenceView]:
    """Return what the model sees in step 1."""
    size = settings.batch_size * settings.grad_accum
    numbers = corpus.order(0, size, settings.seed)
    lines = [[int(fitted.tokens.lines[row]) for row in corpus.training.rows(number)] for number in numbers]
    return views(tokenizer, corpus.sequences(0, size, settings.seed), lines, corpus.pad)


def inspect(request: Request) -> Inspection:
    """Return what a request asks for. Raises what loading raises."""
    asked = {"seq_len": request.seq_len, "loss_on": request.loss_on, "system_prompt": request.system_prompt}
    settings = FinetuneHyperparams.model_validate({name: value for name, value in asked.items() if value is not None})
    tokenizer = models.load_tokenizer(Path(request.model_path))
    notices = []
    if models.ensure_chat_template(tokenizer):
        notices.append("The model has no chat template; ChatML is used.")
    source = Source(Path(request.dataset_path), request.dataset_sha256, request.format, Path(request.cache_path))
    source = source.read(Manner.of(settings))
    found = source.tokens(tokenizer, tell, tell)
    fitted = documents.fit(found, seq_len=settings.seq_len, everything=settings.loss_on == "all")
    refused = corpora.refusal(fitted)
    corpus = None
    try:
        corpus = corpora.assemble(source, fitted, settings, corpora.pad_id(tokenizer))
        notices += corpus.notices
    except RowError as error:
        refused = refused or error
    good = np.setdiff1d(np.arange(len(found.ends)), list(fitted.bad))
    sizes = found.sizes[good]
    at = {share: int(np.percentile(sizes, share, method="inverted_cdf")) if len(sizes) else 0 for share in (50, 95, 99)}
    kept = int(fitted.sizes.sum())
    return Inspection(
        format=request.format,
        seq_len=settings.seq_len,
        rows=len(found.ends),
        training_rows=corpus.training_rows if corpus else 0,
        held_out_rows=len(corpus.validation_rows) if corpus else 0,
        bad_rows=len(fitted.bad),
        bad=tuple(
            BadRows(reason, len(bad), tuple(int(found.lines[row]) for row in bad[: corpora.LINES_SHOWN]))
            for reason, bad in fitted.reasons()
        ),
        stops=str(refused) if refused else "",
        truncated_rows=len(fitted.truncated),
        lost_tokens=int((found.sizes[fitted.truncated] - settings.seq_len).sum()),
        tokens=kept,
        trained_tokens=fitted.targets,
        p50=at[50],
        p95=at[95],
        p99=at[99],
        max=int(sizes.max()) if len(sizes) else 0,
        histogram=tuple(histogram(sizes)),
        sequences=len(corpus.training) if corpus else 0,
        fill=corpus.training_tokens / (len(corpus.training) * settings.seq_len) if corpus else 0.0,
        batch=tuple(first_batch(corpus, fitted, tokenizer, settings)) if corpus else (),
        notices=tuple(notices),
    )


def main(request: str) -> int:
    """Answer one request; return the exit code."""
    try:
        print(json.dumps(asdict(inspect(Request(**json.loads(request)))), ensure_ascii=True))
    except Exception as error:  # noqa: BLE001  (tokenizers and templates fail in many ways; the edge of the process)
        print(f"{error}".replace("\n", " ") or type(error).__name__, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
