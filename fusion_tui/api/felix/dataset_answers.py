"""What dialect B takes and answers about datasets.

The rule: field names are the dialect's own, to the letter; what is under *ours* in a description is this project's.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.service import Version
from fusion_tui.api.answer import Answer, Timestamp

Status = Literal["initialized", "uploading", "converting", "validating", "ready", "failed"]
# A file that has come and that nobody has asked to be processed yet has no word of its own.
WORDS: dict[str, Status] = {"uploaded": "uploading"}
UUID_PATTERN = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"


class NewDatasetUpload(BaseModel):
    """A dataset that is to be sent as one file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={
            "example": {"dataset_name": "support-chats", "dataset_type": "decoder", "filename": "chats.jsonl"}
        },
    )

    dataset_name: str = Field(min_length=1, max_length=100, description="The same name again is a new version.")
    dataset_type: Literal["ner", "classification", "custom", "decoder"] = Field(
        description="What learns from it. In this version: decoder."
    )
    filename: str = Field(min_length=1, max_length=200, description="Its ending tells what kind of file it is.")


class ProcessUpload(BaseModel):
    """A file that has been sent and is to become the dataset."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={"example": {"dataset_id": "8d2c5a54-1f7e-4f3a-9d53-0c4a1f9a7b10"}},
    )

    dataset_id: str = Field(pattern=UUID_PATTERN, json_schema_extra={"format": "uuid"})
    drop_bad: bool = Field(False, description="*Ours*: leave out rows that cannot be used, and count them.")


class PresignedDataset(Answer):
    """Where to PUT the file: the address needs no key and ends after `expires_in` seconds."""

    presigned_url: str
    dataset_id: str
    version_number: int
    expires_in: int


class Processing(Answer):
    """That the processing has begun. `GET /felix/datasets/{name}/{version}` says how it goes."""

    success: Literal[True] = True
    dataset_id: str
    dataset_name: str
    version_number: int
    status: Status
    message: str


class DatasetSummary(Answer):
    """A dataset, by its newest version."""

    dataset_name: str
    status: Status
    created_at: Timestamp
    version_number: int

    @classmethod
    def of(cls, version: Version) -> DatasetSummary:
        """Translate a row."""
        return cls.model_validate(_named(version))


class DatasetSummaries(Answer):
    """Every dataset, by name."""

    success: Literal[True] = True
    count: int
    datasets: list[DatasetSummary]


class DatasetVersion(Answer):
    """A version of a dataset. `size` is in bytes; `error` and `error_row` say why it failed, and where."""

    id: str
    dataset_name: str
    version_number: int
    size: int
    status: Status
    created_at: Timestamp
    rows: int | None = Field(description="*Ours*; null until it is ready.")
    format: str | None = Field(description="*Ours*: the shape of its rows; null until it is ready.")
    error: str | None = Field(description="*Ours*")
    error_row: int | None = Field(description="*Ours*: the first bad row, counted from 1; the line in a text file.")

    @classmethod
    def of(cls, version: Version) -> DatasetVersion:
        """Translate a row."""
        told = {"size": version.bytes, "error": version.detail.get("message"), "error_row": version.detail.get("row")}
        made = version.dataset
        counted = {"rows": made.rows if made else None, "format": made.format if made else None}
        return cls.model_validate({"id": version.id, **_named(version), **told, **counted})


class OneVersion(DatasetVersion):
    """One version of a dataset."""

    success: Literal[True] = True

    @classmethod
    def of(cls, version: Version) -> OneVersion:
        """Translate a row."""
        return cls(**DatasetVersion.of(version).model_dump())


class DatasetVersions(Answer):
    """The versions of a dataset, newest first."""

    success: Literal[True] = True
    count: int
    versions: list[DatasetVersion]


class Preview(Answer):
    """The first rows of a dataset, as they came."""

    success: Literal[True] = True
    dataset_name: str
    version_number: int
    count: int
    rows: list[dict[str, Any]]


class Removed(Answer):
    """That something is gone."""

    success: Literal[True] = True
    message: str


def _named(version: Version) -> dict[str, Any]:
    return {
        "dataset_name": version.name,
        "version_number": version.version,
        "status": WORDS.get(version.state, version.state),
        "created_at": version.created_at,
    }
