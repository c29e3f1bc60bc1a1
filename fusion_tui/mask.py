"""What a model will see of a dataset, as lines of text: the mask of its first batch, and how long its rows are.

The rule: a sign stands at the head of every line, and colour only repeats it; white space is shown, so that what is
read here is exactly what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import chop_cells
from rich.text import Text

from engine.data.inspection import CONTEXT, PADDING, TRAINED, Inspection, SequenceView, Stretch
from engine.text import clean_text
from fusion_tui import format as fmt

# The sign and the style of each use of a token.
SIGNS = {TRAINED: ("+", "bold green"), CONTEXT: ("·", "dim"), PADDING: ("~", "dim yellow")}
LEGEND = "   ".join(f"{sign} {use}" for use, (sign, _) in SIGNS.items())
_SHOWN = str.maketrans({"\t": "⇥", "\r": "␍"})
_CUT = "✂ cut"


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def summary(found: Inspection) -> list[tuple[str, str]]:
    """Return the figures of an inspection: (what, in words)."""
    usable = f"{found.training_rows:,} to train on, {found.held_out_rows:,} held out"
    lengths = f"p50 {found.p50:,} · p95 {found.p95:,} · p99 {found.p99:,} · longest {found.max:,} tokens"
    cut = f"{_rows(found.truncated_rows)} ({found.truncated_share:.1%})"
    lost = f", {found.lost_tokens:,} tokens lost; seq_len {found.max} would keep all" if found.truncated_rows else ""
    lines = [
        ("rows", f"{found.rows:,} of {found.format}: {usable}"),
        ("tokens", f"{found.tokens:,}, {found.trained_tokens:,} of them trained ({found.trained_share:.1%})"),
        ("row length", lengths),
        ("truncated", f"{cut} longer than seq_len {found.seq_len:,}{lost}"),
        ("sequences", f"{found.sequences:,} packed, {found.fill:.0%} full"),
    ]
    for bad in found.bad:
        more = f" and {bad.rows - len(bad.places):,} more" if bad.rows > len(bad.places) else ""
        lines.append(("bad", fmt.clean(f"{_rows(bad.rows)}, {', '.join(bad.places)}{more}: {bad.reason}")))
    return lines if found.bad else [*lines, ("bad", "none")]


def histogram(found: Inspection, width: int) -> list[Text]:
    """Return the lengths of rows as bars of at most `width` cells with their labels."""
    labels = [f"{one.low:,}–{one.high:,}" if one.low < one.high else f"{one.low:,}" for one in found.histogram]
    counts = [f"{bucket.rows:,}" for bucket in found.histogram]
    left, right = (max(map(len, texts), default=0) for texts in (labels, counts))
    room = max(width - left - right - len(_CUT) - 4, 1)
    most = max((bucket.rows for bucket in found.histogram), default=1) or 1
    lines = []
    for bucket, label, count in zip(found.histogram, labels, counts, strict=True):
        eighths = max(round(bucket.rows / most * room * 8), 1 if bucket.rows else 0)
        bar = "█" * (eighths // 8) + "▏▎▍▌▋▊▉"[eighths % 8 - 1] * bool(eighths % 8)
        line = Text.assemble((f"{label:>{left}} ", "dim"), (bar.ljust(room), "cyan"), f" {count:>{right}}")
        if bucket.high > found.seq_len and found.truncated_rows:
            line.append(f" {_CUT}", style="yellow")
        lines.append(line)
    return lines


def batch(found: Inspection, width: int) -> Iterator[Text]:
    """Yield the first batch, a rule above each document, a sign before each line."""
    for number, sequence in enumerate(found.batch, start=1):
        if len(found.batch) > 1:
            yield Text(f"sequence {number} of {len(found.batch)}", style="bold")
        yield from _sequence(sequence, width)


def _sequence(sequence: SequenceView, width: int) -> Iterator[Text]:
    for document in sequence.documents:
        cut = ", cut at seq_len" if document.truncated else ""
        title = f"── line {document.line}: {document.tokens:,} tokens{cut} "
        yield Text(title.ljust(width, "─")[:width], style="dim")
        for stretch in document.stretches:
            yield from _stretch(stretch, width)
    if sequence.padding.ids:
        sign, style = SIGNS[PADDING]
        yield Text(f"{sign} {fmt.clean(sequence.padding.text)} × {len(sequence.padding.ids):,}", style=style)


def _stretch(stretch: Stretch, width: int) -> Iterator[Text]:
    sign, style = SIGNS[stretch.use]
    lines = stretch.text.split("\n")
    for number, line in enumerate(lines, start=1):
        shown = clean_text(line.translate(_SHOWN)) + ("↵" if number < len(lines) else "")
        for piece in _wrapped(shown, max(width - 2, 1)) if shown else ():
            yield Text(f"{sign} {piece}", style=style)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Yield a line in pieces of at most `width` cells, cut after a space where one is near; nothing is left out."""
    while True:
        piece = next(iter(chop_cells(text, width)), "")
        if len(piece) < len(text):
            space = piece.rfind(" ") + 1
            piece = piece[:space] if space > len(piece) // 2 else piece
        yield piece
        text = text[len(piece) :]
        if not text:
            return
