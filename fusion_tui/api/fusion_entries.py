"""What dialect A answers of models, datasets and keys, and what it takes to register a dataset.

The rule: as in `fusion_models`: field names to the letter, and paths inside the data folder stay inside.
"""

from __future__ import annotations

from dataclasses import asdict

from pydantic import BaseModel, ConfigDict, Field

from engine import service as rows
from fusion_tui.api.fusion_models import Answer, Timestamp


class BaseModelEntry(Answer):
    """A model that was imported."""

    id: str
    family: str
    name: str
    version: int
    params: int
    precision: str


class Lineage(Answer):
    """Where a model comes from."""

    job_id: str | None


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
    def of(cls, model: rows.Model) -> ModelEntry:
        """Translate a row."""
        return cls.model_validate(asdict(model) | {"lineage": {"job_id": model.job_id}})


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


class NewDataset(BaseModel):
    """A dataset to register: a JSONL file on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=100, description="The same name again makes a new version.")
    path: str = Field(pattern="^/", max_length=4096, description="Absolute path of the file; it is copied.")


class KeyEntry(Answer):
    """A key without its secret."""

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: Timestamp
