"""What dialect A answers about jobs, as typed models: the source of the OpenAPI document.

The rule: field names are the dialect's own, to the letter; rows turn into them here and in `entries` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from engine import service as rows
from fusion_tui.api.answer import Answer, Measure, Timestamp

Status = Literal[
    "queued",
    "provisioning",
    "staging",
    "running",
    "checkpointing",
    "uploading",
    "preempted",
    "completed",
    "failed",
    "cancelled",
]


class StoredPlan(Answer):
    """The memory plan of a job as of its submit, in bytes."""

    needed: int = Field(description="What the run is expected to take, corrected.")
    planned: int = Field(description="The sum of the parts.")
    correction: float = Field(description="Measured over planned of earlier runs of this mode on this device.")
    runs: int = Field(description="How many runs the correction comes from.")
    mode: str = Field(
        description="What is comparable: full, lora or qlora of a finetune job, grow, qgrow or growall of a train job, "
        "each with a slash and what is recomputed (none, selective, full); contract, or contract/heal."
    )
    phase: str = Field(description="Where the peak lies.")
    parts: dict[str, int] = Field(description="Of that phase.")
    phases: dict[str, int] = Field(description="The sum of each phase, not corrected.")
    device: str
    total: int = Field(description="What the device has; 0 where it does not tell.")


class Job(Answer):
    """A job. `error` is there only when it failed."""

    id: str
    type: str
    status: Status
    retries: int = Field(description="Workers lost and replaced.")
    last_checkpoint_step: int
    output_model_id: str | None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    error: str | None = None
    hyperparams: dict[str, Any] = Field(description="As resolved at launch, defaults filled in.")
    base_model_id: str | None
    source_model_id: str | None
    dataset_id: str | None = Field(description="Null for a contract job.")
    more_dataset_ids: list[str] = Field(description="Datasets that are read after that one, as if they were one.")
    project_id: str | None
    after: str | None = Field(description="Id of the job that must be completed before this one starts.")
    progress: float = Field(ge=0, le=1)
    eta_s: Measure = Field(description="Seconds to go, where known.")
    step: int
    total_steps: int
    name: str
    tags: list[str]
    notes: str
    stop_requested: bool
    save_requested: bool = Field(description="A checkpoint was asked for and is not there yet.")
    delete_requested: bool = Field(description="It goes with all that it made as soon as its worker has stopped.")
    checkpoint_id: str | None = Field(description="The checkpoint of an earlier job that this one starts from.")
    plan: StoredPlan | None = Field(description="Memory; null where the model's could not be planned.")

    @classmethod
    def of(cls, job: rows.Job) -> Job:
        """Translate a row."""
        values = vars(job) | {"status": job.state, "progress": job.progress, "after": job.after_id}
        if job.state != "failed":
            values.pop("error")
        return cls.model_validate(values)


class Point(Answer):
    """Telemetry at a step; `throughput` is tokens a second, `vram_gb` the peak reserved."""

    ts: Timestamp
    step: int
    cycle: int
    phase: str
    loss: Measure
    lr: Measure
    throughput: Measure
    vram_gb: Measure
    grad_norm: Measure
    tokens: int | None
    epoch: Measure
    step_s: Measure


class Metrics(Answer):
    """Points strictly newer than `since_step`; `latest_step` is that of train and eval points, of a job without steps
    of its own that of any, and -1 while there is none."""

    job_id: str
    count: int
    latest_step: int
    points: list[Point]

    @classmethod
    def of(cls, job_id: str, points: Sequence[rows.Point], latest_before: int) -> Metrics:
        """Translate rows. `latest_before` was read before them, so that nobody who asks next for newer ones misses
        any."""
        own = (point.step for point in points if point.phase in rows.OWN)
        return cls(
            job_id=job_id,
            count=len(points),
            latest_step=max(own, default=latest_before),
            points=[Point.model_validate(point._asdict()) for point in points],
        )


class LogLine(Answer):
    """One line of a worker's output."""

    seq: int
    ts: Timestamp
    stream: str
    text: str


class Logs(Answer):
    """Lines strictly newer than `since`; the newest 2,000 are kept."""

    job_id: str
    latest_seq: int
    lines: list[LogLine]

    @classmethod
    def of(cls, job_id: str, lines: list[rows.LogLine], latest_seq: int) -> Logs:
        """Translate rows."""
        kept = [LogLine.model_validate(vars(line)) for line in lines]
        return cls(job_id=job_id, latest_seq=latest_seq, lines=kept)


class Event(Answer):
    """Something that happened to a job; `kind` is `state` for a change of state."""

    ts: Timestamp
    kind: str
    payload: dict[str, Any]


class Result(Answer):
    """What a job came to. Fields that do not apply are null."""

    job_id: str
    ppl_baseline: Measure = None
    ppl_final: Measure = None
    ppl_delta_pct: Measure = None
    loss_final: Measure = None
    params_before: int | None = None
    params_after: int | None = None
    params_delta: int | None = None
    function_preservation: Measure = None
    gpu_seconds: Measure = None
    tokens_processed: int | None = None
    cost_usd: Measure = None
    memory_planned_bytes: int | None = None
    memory_measured_bytes: int | None = Field(None, description="The most that the run took on its device.")
    steps: int | None = Field(None, description="Steps behind the model: fewer than asked for after early stopping.")
    skipped_steps: int | None = Field(None, description="Steps whose loss or gradient stood out or was no number.")
    rows_trained: int | None = None
    rows_held_out: int | None = None
    truncated_rows: int | None = None
    dropped_rows: int | None = None
    tokens_trained: int | None = Field(None, description="Of those processed, the ones that a loss was taken on.")
    ppl_after_growth: Measure = Field(None, description="Grown and not yet trained: as before, or the growth failed.")
    self_ppl_baseline: Measure = Field(None, description="On text that the original model wrote itself.")
    self_ppl_after_growth: Measure = None
    self_ppl_final: Measure = None
    ungrown_ppl_final: Measure = Field(None, description="Of the ungrown model, trained on the same tokens.")
    ungrown_self_ppl_final: Measure = None
    ungrown_training_type: str | None = Field(None, description="How it was trained: full, or lora on one in 4 bits.")
    ungrown_lr: Measure = None
    ungrown_seconds: Measure = Field(None, description="What training it took.")
    logit_kl: Measure = Field(None, description="KL from the original's answers to the grown, untrained model's.")
    argmax_agreement: Measure = Field(None, description="Share of tokens on which both give the same answer.")
    blocks_added: int | None = None
    neurons_added: int | None = Field(None, description="In the MLP of every layer.")
    layout: str | None = Field(None, description="How a contracted model lost its parts: uniform, targeted or depth.")
    param_ratio: Measure = Field(None, description="Parameters after over before.")
    layers: list[int] | None = Field(None, description="Those that lost neurons, or that went, from 0.")
    eval_ppl_baseline: Measure = Field(None, description="On the dataset that a contract job reports on.")
    eval_ppl_final: Measure = None
    healed_steps: int | None = None
    sample_prompt: str | None = Field(
        None, description="From the held-out rows; what the model wrote before and after."
    )
    sample_before: str | None = None
    sample_after: str | None = None


class Checkpoint(Answer):
    """A saved state of a job: published, quarantined or removed."""

    id: str
    job_id: str
    step: int
    epoch: Measure
    loss: Measure
    eval_loss: Measure
    lr: Measure
    path: str
    bytes: int
    status: str
    created_at: Timestamp
    pinned: bool = Field(description="Kept until the job is deleted.")

    @classmethod
    def of(cls, checkpoint: rows.Checkpoint) -> Checkpoint:
        """Translate a row."""
        return cls.model_validate(asdict(checkpoint) | {"status": checkpoint.state})


class Health(Answer):
    """Whether the server works."""

    status: str
    version: str
    store: Literal["ok", "readonly"]
    workers: int = Field(description="Jobs with a live worker.")
