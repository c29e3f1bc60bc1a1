"""What dialect B answers about training jobs and models, as typed models: the source of the OpenAPI document.

The rule: field names are the dialect's own, to the letter; what stands under *ours* is this project's. Rows turn into
these in `records` alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from fusion_tui.api.answer import Answer, Measure, Timestamp
from fusion_tui.api.felix.statuses import Normalized, Status

TaskType = Literal["encoder", "decoder"]
Level = Literal["info", "warning", "error"]


class _Felix(Answer):
    model_config = ConfigDict(protected_namespaces=())  # model_name and model_id are the dialect's


class UsedDataset(_Felix):
    """A dataset of a job; of one that was removed, what is left of its id, and no version."""

    name: str
    version: int | None


class JobMetrics(_Felix):
    """What a complete job came to."""

    final_training_loss: Measure
    final_validation_loss: Measure
    best_validation_loss: Measure


class TrainingJob(_Felix):
    """A training job."""

    id: str
    model_name: str
    base_model: str | None = Field(description="Id of the model, or of the checkpoint, that the job starts from.")
    training_type: str | None = Field(description="lora or full; null for jobs that only the other dialect makes.")
    training_algorithm: str | None = Field(description="sft; null for jobs that only the other dialect makes.")
    status: Status
    normalized_status: Normalized = Field(description="The status with `deployed` as `complete`.")
    is_terminal_status: bool
    progress_percent: float = Field(ge=0, le=100)
    current_epoch: int | None = Field(description="From 1; null before the first step.")
    error_message: str | None
    metrics: JobMetrics | None = Field(description="Null until the job is complete.")
    artifact_ready: bool = Field(description="Whether there are weights to download.")
    is_deployable: bool
    deployability_reason: str | None
    datasets: list[UsedDataset]
    nr_epochs: int | float | None = Field(description="Null for jobs that were asked for in steps.")
    learning_rate: float | None
    created_at: Timestamp
    started_at: Timestamp | None
    completed_at: Timestamp | None
    type: str = Field(description="*Ours*: train, finetune or contract, as in the other dialect.")
    project_id: str | None = Field(description="*Ours*: as it was given.")
    output_model_id: str | None = Field(description="*Ours*: id of the model that the job made.")


class TrainingJobs(_Felix):
    """A page of jobs, newest first."""

    success: bool = True
    training_jobs: list[TrainingJob]
    count: int = Field(description="Of this page.")
    total: int = Field(description="Of all pages.")
    has_more: bool


class JobLogLine(_Felix):
    """One line of a job's log."""

    id: str
    job_id: str
    timestamp: Timestamp
    level: Level
    message: str
    source: str = Field(description="Where it was written: train, stdout, stderr …")


class JobLogs(_Felix):
    """The log of a job, oldest line first; the newest 2,000 are kept."""

    job_id: str
    logs: list[JobLogLine]
    total_logs: int


class JobCheckpoint(_Felix):
    """A checkpoint that stands."""

    id: str
    job_id: str
    epoch: Measure
    step: int
    training_loss: Measure
    validation_loss: Measure
    learning_rate: Measure
    checkpoint_path: str
    is_deployable: bool
    is_best: bool = Field(description="The lowest held-out loss of those that stand.")
    is_final: bool = Field(description="The last step of a complete job.")
    created_at: Timestamp
    updated_at: Timestamp


class JobCheckpoints(_Felix):
    """The checkpoints of a job, oldest first."""

    success: bool = True
    checkpoints: list[JobCheckpoint]
    count: int


class WeightsDownload(_Felix):
    """Where the weights of a job are, for an hour."""

    success: bool = True
    job_id: str
    download_url: str
    expires_in_seconds: int
    file_name: str
    message: str


class Stopped(_Felix):
    """That a job is ended, or will end once its step is done and saved."""

    success: bool = True
    message: str
    job_id: str
    status: Status


class Done(_Felix):
    """That something was done."""

    success: bool = True
    message: str


class TrainedModel(_Felix):
    """A model that a job made. `id` is the model's."""

    id: str
    job_id: str
    model_name: str
    base_model: str | None
    status: Status
    metrics: JobMetrics | None
    created_at: Timestamp


class TrainedModels(_Felix):
    """The models of all successful jobs, newest first, twice: clients read either name."""

    success: bool = True
    count: int
    models: list[TrainedModel]
    training_jobs: list[TrainedModel]


class BaseModelRecord(_Felix):
    """A model to start from."""

    id: str
    label: str
    description: str
    task_type: TaskType
    context_window: int | None = Field(description="Tokens; null where the model does not say.")
    supports_inference: bool
    supports_training: bool


class BaseModels(_Felix):
    """The models to start from."""

    models: list[BaseModelRecord]
