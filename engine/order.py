"""The order a worker carries out: everything it needs to know, as one file in its attempt's directory.

The rule: a worker reads its order and the paths named there, and nothing else of this project's state.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine import atomic
from engine.data import rows

ORDER = "order.json"
JOURNAL = "journal.jsonl"
GATE = "gate"
CHECKPOINTS = "checkpoints"

# How a worker leaves that cannot say in its journal why: its gate did not open; the journal could not be written.
NOT_ADMITTED, UNTOLD = 3, 4


@dataclass(frozen=True)
class Data:
    """A dataset as a worker is told of it; fields as those of an order that begin with `dataset_`."""

    name: str
    path: str
    sha256: str
    format: str = rows.MIXED
    cache_path: str = ""


@dataclass(frozen=True)
class Start:
    """The checkpoint that a job starts from, of which its worker makes a model at the order's `model_path`.

    `directory` is where the checkpoint lies, empty where it is gone since that model was made; `model_path` and
    `hyperparams` are what its job trained, and how.
    """

    checkpoint_id: str
    job_id: str = ""
    job_name: str = ""
    step: int = 0
    directory: str = ""
    model_path: str = ""
    hyperparams: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """One attempt at one job. Paths are absolute; `device` is a torch device string."""

    job_id: str
    fence: int
    type: str
    device: str
    hyperparams: dict[str, Any]
    model_id: str
    model_name: str
    model_path: str
    dataset_name: str
    dataset_path: str
    dataset_sha256: str
    output_id: str
    output_name: str
    output_path: str
    checkpoint_roots: tuple[str, ...]  # this attempt's first, then the earlier ones', newest first
    keep_checkpoints: int = 2
    dataset_format: str = rows.MIXED  # the shape that all rows have; mixed: each row's own is detected
    cache_path: str = ""  # folder of the dataset's cached tokens; empty: none is kept
    start: Start | None = None
    more_datasets: tuple[Data, ...] = ()  # read after that one, as if they were one

    @property
    def datasets(self) -> tuple[Data, ...]:
        """All datasets in the order in which they are read; none for a job that reads none."""
        first = Data(self.dataset_name, self.dataset_path, self.dataset_sha256, self.dataset_format, self.cache_path)
        return (first, *self.more_datasets) if self.dataset_path else ()

    def write(self, directory: Path) -> None:
        """Write the order into an attempt's directory."""
        atomic.write_json(directory / ORDER, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> Order:
        """Read an attempt's order. Raises OSError or ValueError."""
        fields = json.loads((directory / ORDER).read_text())
        fields["checkpoint_roots"] = tuple(fields["checkpoint_roots"])
        fields["more_datasets"] = tuple(Data(**each) for each in fields.get("more_datasets", ()))
        if fields.get("start"):
            fields["start"] = Start(**fields["start"])
        return cls(**fields)
