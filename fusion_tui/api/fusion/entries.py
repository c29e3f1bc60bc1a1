"""What dialect A answers of models, datasets and keys, and what it takes to register a dataset.

The rule: as in `answers`: field names to the letter, and paths inside the data folder stay inside.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine import service as rows
from engine.data.inspection import BadRows, Bucket, Inspection, SequenceView
from engine.service import AnyModel, Dataset
from fusion_tui.api.answer import Answer, Timestamp

Format = Literal["messages", "sharegpt", "dpo", "prompt_completion", "alpaca", "grpo", "text"]


class BaseModelEntry(Answer):
    """A model that was imported."""

    id: str
    family: str
    name: str
    version: int
    params: int
    precision: str


class Parent(Answer):
    """A model that another was made from, and the job that made it; null for an imported one."""

    id: str
    name: str
    job_id: str | None
    type: str | None


class Lineage(Answer):
    """Where a model comes from: the job that made it and its type, null where that was deleted."""

    job_id: str | None
    type: str | None
    parent: Parent | None = Field(description="The model that the job started from; null where it was removed.")
    parents: list[Parent] = Field(description="That one, the one before it, and so on to one that was imported.")


class ModelEntry(Answer):
    """A model that a job made."""

    id: str
    name: str
    version: int
    params: int
    base_model_id: str
    lineage: Lineage
    status: str
    created_at: Timestamp

    @classmethod
    def of(cls, model: rows.Model, lineage: rows.Lineage) -> ModelEntry:
        """Translate a row."""
        told = asdict(lineage) | {"parent": asdict(lineage.parent) if lineage.parent else None}
        return cls.model_validate(asdict(model) | {"lineage": told})


class DatasetEntry(Answer):
    """An immutable version of a dataset."""

    id: str
    name: str
    version: int
    shard_count: int
    bytes: int
    status: str
    created_at: Timestamp
    rows: int
    format: str
    facts: dict[str, Any] = Field(
        description="Counted at the import: characters of all rows and of a row, rows of each shape, rows left out."
    )


class NewDataset(BaseModel):
    """A dataset to register: a file of rows on this machine, or a folder of such files."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=100, description="The same name again makes a new version.")
    path: str = Field(pattern="^/", max_length=4096, description="Absolute path of the file or folder; it is copied.")
    format: Format | None = Field(None, description="The format that every row has; otherwise each row's is detected.")
    drop_bad: bool = Field(False, description="Leave out rows that cannot be used, and count them.")


class InspectionEntry(Answer):
    """A dataset as a model will see it, with bad rows left out. Lengths are in tokens, of whole rows.

    `stops` says why a job that leaves no bad row out would end at once; it is empty where it would not. `batch` is
    what the model sees in step 1 with seed 0.
    """

    dataset_id: str
    dataset: str
    version: int
    model_id: str
    model: str
    format: str
    seq_len: int
    rows: int
    training_rows: int
    held_out_rows: int
    bad_rows: int
    bad: list[BadRows]
    stops: str
    truncated_rows: int
    truncated_share: float = Field(ge=0, le=1)
    lost_tokens: int
    tokens: int
    trained_tokens: int
    trained_share: float = Field(ge=0, le=1)
    p50: int
    p95: int
    p99: int
    max: int
    histogram: list[Bucket]
    sequences: int
    fill: float
    batch: list[SequenceView]
    notices: list[str]

    @classmethod
    def of(cls, dataset: Dataset, model: AnyModel, found: Inspection) -> InspectionEntry:
        """Translate what the trainer found."""
        named = {"dataset_id": dataset.id, "dataset": dataset.name, "version": dataset.version}
        shares = {"truncated_share": found.truncated_share, "trained_share": found.trained_share}
        return cls.model_validate(asdict(found) | named | shares | {"model_id": model.id, "model": model.name})


class KeyEntry(Answer):
    """A key without its secret."""

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: Timestamp
