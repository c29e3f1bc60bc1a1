"""Charts as files: their numbers as CSV, their picture as SVG.

The rule: a file that is there is never touched; of a write that fails nothing is left.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from engine.errors import EngineError
from engine.service import OWN, Job, Point
from fusion_tui import format as fmt
from fusion_tui.widgets.curve import Look, smooth

NAME_BYTES = 120  # of a file's name, which most file systems end at 255
TRIES = 10_000  # names with a number behind them, before it is a folder that something is wrong with


@dataclass(frozen=True, eq=False)
class Sheet:
    """A table with its head; `rows` can be gone through once, `size` says how many there are at most."""

    head: tuple[str, ...]
    rows: Iterable[Sequence[Any]]
    size: int


def curve_sheet(curves: Sequence[tuple[Job, Sequence[Point]]], look: Look) -> Sheet:
    """Return the curves of runs, the whole of each whatever the zoom, with the smoothed value of each point."""
    head = ("run", "id", "phase", "step", "tokens", "seconds", look.metric, "smoothed")
    rows = (row for job, points in curves for row in _rows(job, points, look))
    return Sheet(head, rows, sum(len(points) for _, points in curves))


def _rows(job: Job, points: Sequence[Point], look: Look) -> Iterator[Sequence[Any]]:
    phases = OWN if look.metric == "loss" else ("train",)
    start = min((point.ts for point in points), default=0.0)
    average = _averages(points, look)
    name = fmt.clean(job.name)
    for place, point in enumerate(points):
        if point.phase in phases:
            value, smoothed = getattr(point, look.metric), average.get(place)
            yield name, job.id, point.phase, point.step, point.tokens, round(point.ts - start, 3), value, smoothed


def _averages(points: Sequence[Point], look: Look) -> dict[int, float]:
    """Return the moving average at each training point that has a number, by its place; none without smoothing."""
    values = ((place, getattr(point, look.metric)) for place, point in enumerate(points) if point.phase == "train")
    known = {place: value for place, value in values if value is not None and math.isfinite(value)}
    return dict(zip(known, smooth([*known.values()], look.smoothing), strict=True)) if look.level else {}


def layers_sheet(title: str, values: Sequence[float | None], signs: Mapping[int, str]) -> Sheet:
    """Return the value of each layer, and the sign that marks it in the chart."""
    rows = [(layer, value, signs.get(layer, "")) for layer, value in enumerate(values)]
    return Sheet(("layer", title, "sign"), rows, len(rows))


def csv_text(sheet: Sheet) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    _put(sheet, text)
    return text.getvalue()


def svg(picture: Text, title: str, width: int, height: int) -> str:
    """Return a chart of `width` × `height` cells as an SVG picture."""
    console = Console(
        record=True, width=width, height=height, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(picture, crop=True, no_wrap=True)
    return console.export_svg(title=fmt.clean(title))


def stem(name: str) -> str:
    """Return a name as that of a file: letters, digits, `.`, `_` and `-`, of a length that every file system takes."""
    safe = "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in fmt.clean(name)).strip(".-")
    return safe.encode()[:NAME_BYTES].decode(errors="ignore") or "chart"


def write(folder: str, name: str, sheet: Sheet, picture: str) -> tuple[Path, Path]:
    """Write a chart's numbers and its picture under the first name that is free, and return both files.

    Raises EngineError where the folder is none, or cannot be written.
    """
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        raise EngineError(f"{place} is no folder. Name one that is there, or make it first.")
    for turn in range(1, TRIES):
        base = place / (stem(name) + (f"-{turn}" if turn > 1 else ""))
        files = Path(f"{base}.csv"), Path(f"{base}.svg")
        if any(map(os.path.lexists, files)):
            continue
        try:
            _write(*files, sheet, picture)
        except FileExistsError:
            continue  # somebody else took the name just now
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise EngineError(f"Nothing was written into {place} ({why}). Name another folder, or make room.") from None
        return files
    raise EngineError(f"{place} holds {TRIES} files called {stem(name)}. Name another folder.")


def _write(numbers: Path, image: Path, sheet: Sheet, picture: str) -> None:
    """Make both files, or neither. Raises FileExistsError where one is there, before any row is taken."""
    made: list[Path] = []
    try:
        with _new(numbers, made) as first, _new(image, made) as second:
            _put(sheet, first)
            second.write(picture)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def _put(sheet: Sheet, file: TextIO) -> None:
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(sheet.head)
    lines.writerows(sheet.rows)


def _new(path: Path, made: list[Path]) -> TextIO:
    file = path.open("x", encoding="utf-8", newline="")
    made.append(path)
    return file
