"""Rows turned into dialect B's answers.

The rule: what many records share (datasets, models, results, newest points) is read once for all of them.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from engine.jobs import features
from engine.plans import advice
from engine.service import BaseModel, Checkpoint, Dataset, Job, LogLine, Model, Point, Service, states
from fusion_tui.api.answer import iso
from fusion_tui.api.felix import answers
from fusion_tui.api.felix.requests import BaseModelQuery
from fusion_tui.api.felix.statuses import OF_STATE

# Streams of a log that are said in a level; every other is information.
_LEVELS: dict[str, answers.Level] = {"error": "error", "stderr": "error", "warning": "warning"}
_LEVEL_WORDS = ("error", "warning")  # streams that are no place: the trainer's
FINETUNE = "finetune"
Titles: TypeAlias = "dict[str, tuple[str, int]]"  # name and version of entries, by their ids


def jobs(service: Service, rows: Sequence[Job]) -> list[answers.TrainingJob]:
    """Return the records of these jobs."""
    datasets = service.titles(Dataset, [each for job in rows for each in _datasets(job)])
    models = service.titles(Model, [job.output_model_id for job in rows if job.output_model_id])
    results = service.results([job.id for job in rows if job.state == states.COMPLETED])
    points = service.latest_points([job.id for job in rows])
    return [
        _record(job, datasets, results.get(job.id), points.get(job.id), made=job.output_model_id in models)
        for job in rows
    ]


def _record(
    job: Job, datasets: Titles, result: Mapping[str, Any] | None, point: Point | None, *, made: bool
) -> answers.TrainingJob:
    status = OF_STATE[job.state]
    finetune = job.type == FINETUNE
    ready = made and job.state == states.COMPLETED
    epochs = job.hyperparams.get("epochs")
    return answers.TrainingJob(
        id=job.id,
        model_name=job.name,
        base_model=base_model(job),
        training_type=job.hyperparams.get("training_type") if finetune else None,
        training_algorithm="sft" if finetune else None,
        status=status,
        normalized_status=status,
        is_terminal_status=job.finished,
        progress_percent=round(100 * job.progress, 2),
        current_epoch=_epoch(point, epochs),
        error_message=job.error if job.state == states.FAILED else None,
        metrics=metrics(result) if job.state == states.COMPLETED else None,
        artifact_ready=ready,
        is_deployable=ready and features.exists("deployments"),
        deployability_reason=_why_not_deployable(job, ready),
        datasets=[_used(datasets, each) for each in _datasets(job)],
        nr_epochs=int(epochs) if epochs and float(epochs).is_integer() else epochs,
        learning_rate=job.hyperparams.get("lr"),
        created_at=iso(job.created_at),
        started_at=_iso(job.started_at),
        completed_at=_iso(job.finished_at),
        type=job.type,
        project_id=job.project_id,
        output_model_id=job.output_model_id,
    )


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)


def base_model(job: Job) -> str | None:
    """Return the id of what a job starts from."""
    return job.checkpoint_id or job.base_model_id or job.source_model_id


def _epoch(point: Point | None, epochs: float | None) -> int | None:
    """Return the pass over the data that the newest step belongs to, from 1."""
    if point is None or point.epoch is None or not math.isfinite(point.epoch):
        return None
    # The last step of a pass stands at its end, give or take what a float leaves.
    current = max(math.ceil(point.epoch - 1e-6), 1)
    return min(current, max(math.ceil(epochs), 1)) if epochs else current


def metrics(result: Mapping[str, Any] | None) -> answers.JobMetrics | None:
    """Return what a result says of the losses; the held-out loss is kept as its perplexity."""
    if result is None:
        return None
    training, perplexity, best = (_number(result.get(name)) for name in ("loss_final", "ppl_final", "eval_loss_best"))
    return answers.JobMetrics(
        final_training_loss=training,
        final_validation_loss=math.log(perplexity) if perplexity and perplexity > 0 else None,
        best_validation_loss=best,
    )


def _number(value: Any) -> float | None:
    """Return what a worker reported where it is a number: one of another version may have said anything."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _why_not_deployable(job: Job, ready: bool) -> str | None:
    if absent := features.absence("deployments", ()):
        return f"{absent.message[:1].upper()}{absent.message[1:]}."
    if job.state != states.COMPLETED:
        return f"The job is {OF_STATE[job.state]}, not complete."
    return None if ready else "The model that the job made was removed."


def _datasets(job: Job) -> list[str]:
    return [each for each in (job.dataset_id, *job.more_dataset_ids) if each]


def _used(datasets: Titles, dataset_id: str) -> answers.UsedDataset:
    name, version = datasets.get(dataset_id, (f"{dataset_id[:8]} (removed)", None))
    return answers.UsedDataset(name=name, version=version)


def log_line(job_id: str, line: LogLine) -> answers.JobLogLine:
    """Return a line of a job's log, under an id that is the same each time it is asked for."""
    return answers.JobLogLine(
        id=str(uuid.uuid5(uuid.UUID(job_id), str(line.seq))),
        job_id=job_id,
        timestamp=iso(line.ts),
        level=_LEVELS.get(line.stream, "info"),
        message=line.text,
        source="train" if line.stream in _LEVEL_WORDS else line.stream,
    )


def checkpoints(job: Job, rows: Sequence[Checkpoint]) -> list[answers.JobCheckpoint]:
    """Return those of a job's checkpoints that stand."""
    standing = [row for row in rows if row.state == "published"]
    judged = [row for row in standing if row.eval_loss is not None]
    best = min(judged, key=lambda row: row.eval_loss or 0.0, default=None)
    final = job.step if job.state == states.COMPLETED else None
    return [
        answers.JobCheckpoint.model_validate(
            {
                **asdict(row),
                "training_loss": row.loss,
                "validation_loss": row.eval_loss,
                "learning_rate": row.lr,
                "checkpoint_path": row.path,
                "is_deployable": features.exists("deployments"),
                "is_best": row is best,
                "is_final": row.step == final,
                "updated_at": row.created_at,
            }
        )
        for row in standing
    ]


def trained_models(service: Service, rows: Sequence[Job]) -> answers.TrainedModels:
    """Return the models of complete jobs."""
    results = service.results([job.id for job in rows])
    made = [
        answers.TrainedModel(
            id=job.output_model_id or job.id,
            job_id=job.id,
            model_name=job.name,
            base_model=base_model(job),
            status=OF_STATE[job.state],
            metrics=metrics(results.get(job.id)),
            created_at=iso(job.created_at),
        )
        for job in rows
    ]
    return answers.TrainedModels(count=len(made), models=made, training_jobs=made)


def base_models(service: Service, wanted: BaseModelQuery) -> answers.BaseModels:
    """Return the imported models that are as wanted. All of them are decoders in this version."""
    said = wanted.model_dump(exclude_none=True).items()
    found = [_base_model(entry) for entry in service.base_models()]
    fits = [entry for entry in found if all(getattr(entry, name) == value for name, value in said)]
    return answers.BaseModels(models=fits)


def _base_model(entry: BaseModel) -> answers.BaseModelRecord:
    return answers.BaseModelRecord(
        id=entry.id,
        label=entry.name,
        description=f"{entry.family}, {entry.params:,} parameters in {entry.precision}, version {entry.version}",
        task_type="decoder",
        context_window=advice.model_size(entry).positions,
        supports_inference=features.exists("inference"),
        supports_training=True,
    )
