"""Steps that follow from epochs are estimated over the rows that are trained on: not over those that are held out."""

from __future__ import annotations

from typing import Any

import pytest

from engine.data import rows
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.plans import duration
from store.catalog import Dataset

ROW = {"epochs": 1, "packing": False, "val_fraction": 0.2}


def dataset(name: str, count: int) -> Dataset:
    """Return an entry of so many short rows, of whose lengths nothing more is known."""
    known: dict[str, Any] = {"version": 1, "shard_count": 1, "source": "", "status": "ready", "created_at": 0.0}
    return Dataset(name, name, format=rows.MESSAGES, rows=count, bytes=400 * count, sha256="", path="/none", **known)


@pytest.mark.parametrize(
    ("split", "counts", "steps"),
    [
        ("last", (600, 5), 480 + 4),
        ("last", (5, 600), 4 + 480),
        ("last", (1, 1), 1),
        ("last", (1,), 1),
        ("last", (1, 10), 1 + 8),
        ("random", (600, 5), 605 - 121),
        ("random", (10_000,), 10_000 - 500),
    ],
)
def test_what_is_held_out_of_each_dataset_is_not_counted(split: str, counts: tuple[int, ...], steps: int) -> None:
    settings = FinetuneHyperparams.model_validate({**ROW, "val_split": split})
    named = [dataset(f"d{number}", count) for number, count in enumerate(counts)]
    assert duration.steps(settings, named, None) == steps
