"""What dialect A answers of models, datasets and keys, and what it takes to register a dataset.

The rule: as in `answers`: field names to the letter, and paths inside the data folder stay inside.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from engine import service as rows
from engine.data.inspection import BadRows, Bucket, Inspection, SequenceView
from engine.service import AnyModel, Dataset
from fusion_tui.api.answer import Answer, Timestamp

Format = Literal["messages", "sharegpt", "dpo", "prompt_completion", "alpaca", "grpo", "text"]


# In capitals too, as the ids in paths.
UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"


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


class StartPoint(Answer):
    """A checkpoint that a job started from, its job and its step: null where that job was deleted."""

    id: str
    job_id: str | None
    step: int | None


class Lineage(Answer):
    """Where a model comes from: the job that made it and its type, null where that was deleted."""

    job_id: str | None
    type: str | None
    parent: Parent | None = Field(description="The model that the job started from; null where it was removed.")
    parents: list[Parent] = Field(description="That one, the one before it, and so on to one that was imported.")
    checkpoint: StartPoint | None = Field(description="The checkpoint that the job started from; null for a model.")


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


class DownloadFile(Answer):
    """A file of a model. `url` needs no key, opens this file alone, and ends within the hour."""

    rel: str = Field(description="Its name below the model's folder.")
    size: int = Field(description="In bytes.")
    url: str


class Download(Answer):
    """The files of a model: together in one folder they are a model as transformers loads it."""

    model_id: str
    name: str
    version: int
    files: list[DownloadFile]


class NewUpload(BaseModel):
    """A file to be sent."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={"example": {"filename": "rows.jsonl", "content_type": "application/jsonl"}},
    )

    filename: str = Field(min_length=1, max_length=200, description="Its ending tells what kind of file it is.")
    content_type: str = Field("application/octet-stream", pattern=r"^[\x20-\x7e]+$", max_length=200)


class PresignedUpload(Answer):
    """Where to send the file: with this method to this url, which needs no key and ends within the hour."""

    upload_id: str
    key: str
    url: str
    method: Literal["PUT"] = "PUT"


class NewDataset(BaseModel):
    """A dataset to register: a file that was sent (`upload_id`), or a file or folder of rows on this machine (`path`).

    Exactly one of the two is given.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={
            "example": {"name": "sums", "path": "/home/me/sums.jsonl"},
            "oneOf": [{"required": ["upload_id"]}, {"required": ["path"]}],
        },
    )

    name: str = Field(min_length=1, max_length=100, description="The same name again makes a new version.")
    upload_id: str | None = Field(
        None, pattern=UUID, json_schema_extra={"format": "uuid"}, description="Of its presign."
    )
    path: str | None = Field(
        None,
        pattern="^/",
        max_length=4096,
        validate_default=True,
        description="Absolute path of the file or folder; it is copied.",
    )
    format: Format | None = Field(None, description="The format that every row has; otherwise each row's is detected.")
    drop_bad: bool = Field(False, description="Leave out rows that cannot be used, and count them.")

    @field_validator("path")
    @classmethod
    def _one_source(cls, path: str | None, info: ValidationInfo) -> str | None:
        if "upload_id" in info.data and (path is None) == (info.data["upload_id"] is None):
            raise PydanticCustomError("one_source", "Give either path or upload_id")
        return path


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
