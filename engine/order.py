"""The order a worker carries out: everything it needs to know, as one file in its attempt's directory.

The rule: a worker reads its order and the paths named there, and nothing else of this project's state.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
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

    def write(self, directory: Path) -> None:
        """Write the order into an attempt's directory."""
        atomic.write_json(directory / ORDER, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> Order:
        """Read an attempt's order. Raises OSError or ValueError."""
        fields = json.loads((directory / ORDER).read_text())
        fields["checkpoint_roots"] = tuple(fields["checkpoint_roots"])
        return cls(**fields)
