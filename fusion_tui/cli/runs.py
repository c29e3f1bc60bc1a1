"""Commands about runs: submit, jobs, show, logs, metrics, watch, events, result, checkpoints."""

from __future__ import annotations

import csv
import json
import sys
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from engine.errors import Fault, InvalidRequest
from engine.running import evidence
from engine.running.evidence import Evidence
from engine.service import Job, Point, Service, states
from engine.text import clean_text
from fusion_tui import daemon
from fusion_tui.api.answer import iso
from fusion_tui.api.fusion import answers
from fusion_tui.cli import plans
from fusion_tui.cli.output import Session, document, json_option, pass_session, say, table
from fusion_tui.cli.results import result_text
from fusion_tui.cli.watching import duration, follow, how_far, shown_state, status_line

FOLLOW_SECONDS = 0.3


def job_document(job: Job) -> dict[str, Any]:
    """Return a job as the API's dialect A shows it."""
    return answers.Job.of(job).model_dump(mode="json", exclude_unset=True)


def _evidence(service: Service, listed: list[Job]) -> dict[str, Evidence]:
    """Return what speaks for those runs that the store calls worked on."""
    return evidence.of_jobs(service.store.read(), service.home, listed)


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Turn key=value pairs into hyper-parameters; a value that is JSON counts as such. Raises InvalidRequest."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InvalidRequest([Fault(("--set",), f"'{pair}' is not of the form key=value")])
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


def _request_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest([Fault(("--file",), f"{path} cannot be read as JSON ({error})")]) from None
    if not isinstance(loaded, dict):
        raise InvalidRequest([Fault(("--file",), f"{path} must hold one JSON object")])
    return loaded


@click.command()
@click.argument("type_", metavar="TYPE", required=False)
@click.option("--model", help="Model to start from: id or name; @RUN is the one that a run makes, and starts after it.")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    help="Dataset to train on: id or name; repeated, they are read as one. A contract run takes none.",
)
@click.option("--checkpoint", metavar="UUID", help="Checkpoint of an earlier fine-tune to start from, not a model.")
@click.option("--after", metavar="RUN", help="Start when this run is completed: id or name.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="A setting; may be repeated.")
@click.option("--file", "file", type=click.Path(path_type=Path), help="A request as JSON; options win over it.")
@click.option("--name", help="Name of the run.")
@click.option("--key", help="Idempotency key: the same key again is the same run.")
@click.option("--wait", is_flag=True, help="Follow the run to its end; exit 1 unless it completes.")
@click.option("--force", is_flag=True, help="Queue it even with a learning rate that is likely to diverge.")
@click.option("--dry-run", is_flag=True, help="Print the memory plan and submit nothing; exit 1 if it cannot fit.")
@click.option("--card", type=click.FloatRange(min=0.1), metavar="GB", help="Plan for an NVIDIA card of this size.")
@json_option
@pass_session
def submit(
    session: Session,
    *,
    type_: str | None,
    model: str | None,
    datasets: tuple[str, ...],
    checkpoint: str | None,
    after: str | None,
    pairs: tuple[str, ...],
    file: Path | None,
    name: str | None,
    key: str | None,
    wait: bool,
    force: bool,
    dry_run: bool,
    card: float | None,
    as_json: bool,
) -> None:
    """Queue a run. TYPE: train (grow a model, then train what is new), finetune, or contract (shrink one).

    With --dry-run the model may be a folder with no more than a config.json. Runs can follow each other:

    \b
      submit train --model M --dataset D --name grown
      submit finetune --model @grown --dataset E --name tuned
      submit contract --model @tuned
    """
    request = _request_file(file)
    given: dict[str, Any] = {"type": type_, "base_model_id": model, "checkpoint_id": checkpoint, "after": after}
    given |= {"name": name, "idempotency_key": key}
    if datasets:
        given |= {"dataset_id": datasets[0], "more_dataset_ids": list(datasets[1:])}
    request |= {field: value for field, value in given.items() if value is not None}
    if not isinstance(request.get("hyperparams") or {}, dict):
        raise InvalidRequest([Fault(("--file", "hyperparams"), "must be an object")])
    request["hyperparams"] = {**(request.get("hyperparams") or {}), **_settings(pairs)}
    request.setdefault("idempotency_key", str(uuid.uuid4()))
    service = session.service
    if card is not None and not dry_run:
        raise InvalidRequest([Fault(("--card",), "goes with --dry-run: a run takes the card of this machine")])
    if dry_run:
        report = service.plan(request, card_gb=card)
        plans.show_plan(report, as_json=as_json)
        sys.exit(1 if report.verdict == "too_large" else 0)
    submission = service.submit(request, careful=not force)
    if submission.advice:
        say(f"Note: {submission.advice}.")
    daemon.ensure_running(service.home)
    job = submission.job
    if not submission.created:
        say(f"This key was used before: the run {job.name} exists already.")
    if wait:
        say(f"{job.name} ({job.id})")
        job = follow(service, job.id)
    if as_json:
        document(job_document(job))
    elif wait:
        _say_end(session, job)
    else:
        click.echo(job.id)
        after_whom = f", after {service.predecessor_of(job)}" if job.after_id else ""
        say(f"Queued as {job.name}{after_whom}. Watch it: fusion-tui watch {job.id[:8]}")
    if wait and job.state != "completed":
        sys.exit(1)


def _say_end(session: Session, job: Job) -> None:
    if job.error:
        say(f"{job.name} failed: {job.error}")
    result = session.service.result(job.id)
    if result:
        click.echo(result_text(result))
    made = [model for model in session.service.models() if model.id == job.output_model_id]
    for model in made:
        say(f"Model {model.name}: {model.path}")


@click.command()
@click.option("--status", type=click.Choice(states.ALL), help="Only runs in this state.")
@click.option("--limit", type=click.IntRange(1), default=None, help="At most so many, newest first.")
@json_option
@pass_session
def jobs(session: Session, *, status: str | None, limit: int | None, as_json: bool) -> None:
    """List runs, newest first."""
    service = session.service
    listed = service.jobs(status=status, limit=limit)
    seen = _evidence(service, listed)
    if as_json:
        document([{**job_document(job), "evidence": seen.get(job.id)} for job in listed])
        return
    if not listed:
        say("No runs yet. Try: fusion-tui demo")
        return
    points = service.latest_points([job.id for job in listed])
    heads = ["id", "name", "state", "step", "loss", "left", "age"]
    rows = [
        [
            job.id[:8],
            job.name,
            shown_state(job, seen.get(job.id)),
            how_far(job),
            f"{points[job.id].loss:.3f}" if job.id in points and points[job.id].loss is not None else "–",
            duration(job.eta_s) if not job.finished else "–",
            duration(time.time() - job.created_at),
        ]
        for job in listed
    ]
    if any(job.after_id for job in listed):
        heads.insert(2, "after")
        for job, row in zip(listed, rows, strict=True):
            row.insert(2, service.predecessor_of(job) or "")
    table(heads, rows)


@click.command()
@click.argument("job_ref", metavar="ID")
@json_option
@pass_session
def show(session: Session, *, job_ref: str, as_json: bool) -> None:
    """Show one run. ID: an id, the beginning of one, or a name."""
    service = session.service
    job = service.find_job(job_ref)
    seen = _evidence(service, [job]).get(job.id)
    if as_json:
        document({**job_document(job), "evidence": seen})
        return
    click.echo(f"{job.name}  {job.id}")
    click.echo(status_line(job, service.latest_points([job.id]).get(job.id), seen))
    if seen in ("gone", "lost"):
        remedy = "; go on: fusion-tui serve --detach" if seen == "lost" else ""
        click.echo(f"{evidence.WORDS[seen]}{remedy}")
    named = ", ".join(service.name_of(one) for one in (job.dataset_id, *job.more_dataset_ids))
    data = f" on {named}" if job.dataset_id else ""
    after = f", after {service.predecessor_of(job)}" if job.after_id else ""
    click.echo(
        f"{job.type} of {service.name_of(job.base_model_id or job.source_model_id)}{data}{after}; {job.retries} retries"
    )
    if job.error:
        click.echo(f"error: {clean_text(job.error)}")
    if job.output_model_id:
        click.echo(f"model: {service.name_of(job.output_model_id)} ({job.output_model_id})")
    measured = (service.result(job.id) or {}).get("memory_measured_bytes")
    if memory := plans.memory_line(job.plan["needed"] if job.plan else None, measured):
        click.echo(memory)
    for key, value in job.hyperparams.items():
        click.echo(f"  {key} = {value}")


@click.command()
@click.argument("job_ref", metavar="ID")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the run ends.")
@json_option
@pass_session
def logs(session: Session, *, job_ref: str, following: bool, as_json: bool) -> None:
    """Print a run's log."""
    service = session.service
    job = service.find_job(job_ref)
    if as_json:
        lines = service.logs(job.id)
        document(answers.Logs.of(job.id, lines, lines[-1].seq if lines else 0).model_dump(mode="json"))
        return
    last = 0
    while True:
        # The state is read first: lines that came with the end are then still printed.
        finished = service.job(job.id).finished
        for line in service.logs(job.id, since=last):
            click.echo(clean_text(line.text))
            last = line.seq
        if finished or not following:
            return
        time.sleep(FOLLOW_SECONDS)


@click.command()
@click.argument("job_ref", metavar="ID")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values, with headings.")
@click.option("--since", type=int, default=-1, help="Only points of training and evaluation after this step.")
@json_option
@pass_session
def metrics(session: Session, *, job_ref: str, as_csv: bool, since: int, as_json: bool) -> None:
    """Print a run's telemetry."""
    service = session.service
    job = service.find_job(job_ref)
    latest = service.latest_step(job.id)
    points = service.points(job.id, since_step=since)
    if as_json:
        document(answers.Metrics.of(job.id, points, latest).model_dump(mode="json"))
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, Point._fields)
        writer.writeheader()
        writer.writerows(point._asdict() for point in points)
    else:
        rows = [
            (p.step, p.phase, _short(p.loss), _short(p.lr), _short(p.grad_norm), _short(p.throughput), p.tokens or 0)
            for p in points
        ]
        table(("step", "phase", "loss", "lr", "grad norm", "tok/s", "tokens"), rows)


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


@click.command()
@click.argument("job_ref", metavar="ID")
@json_option
@pass_session
def watch(session: Session, *, job_ref: str, as_json: bool) -> None:
    """Follow a run until it ends; exit 1 unless it completes."""
    job = follow(session.service, session.service.find_job(job_ref).id)
    if as_json:
        document(job_document(job))
    else:
        _say_end(session, job)
    if job.state != "completed":
        sys.exit(1)


@click.command()
@click.argument("job_ref", metavar="ID")
@json_option
@pass_session
def events(session: Session, *, job_ref: str, as_json: bool) -> None:
    """Print what happened to a run, oldest first."""
    happened = session.service.events(session.service.find_job(job_ref).id)
    if as_json:
        document([answers.Event.model_validate(asdict(event)).model_dump(mode="json") for event in happened])
        return
    for event in happened:
        payload = "  ".join(f"{key}={value}" for key, value in event.payload.items() if value is not None)
        click.echo(clean_text(f"{iso(event.ts)}  {event.kind:<14} {payload}"))


@click.command()
@click.argument("job_ref", metavar="ID")
@json_option
@pass_session
def result(session: Session, *, job_ref: str, as_json: bool) -> None:
    """Print what a run came to; exit 1 while there is none."""
    job = session.service.find_job(job_ref)
    body = session.service.result(job.id)
    if body is None:
        say(f"{job.name} has no result yet: it is {job.state}.")
        sys.exit(1)
    if as_json:
        document(body)
    else:
        click.echo(result_text(body))


@click.command()
@click.argument("job_ref", metavar="ID")
@click.option("--pin", type=int, metavar="STEP", help="Keep the checkpoint of this step until the run is deleted.")
@click.option("--unpin", type=int, metavar="STEP", help="Let it go when newer ones are there.")
@json_option
@pass_session
def checkpoints(session: Session, *, job_ref: str, pin: int | None, unpin: int | None, as_json: bool) -> None:
    """List a run's checkpoints, oldest first; pin one, so that it is kept."""
    job = session.service.find_job(job_ref)
    for step, pinned in ((pin, True), (unpin, False)):
        if step is not None:
            session.service.pin_checkpoint(job.id, step, pinned)
    found = session.service.checkpoints(job.id)
    if as_json:
        document([answers.Checkpoint.of(checkpoint).model_dump(mode="json") for checkpoint in found])
        return
    rows = [
        (c.step, c.state, "pinned" if c.pinned else "", _short(c.loss), _short(c.eval_loss), c.id, c.path)
        for c in found
    ]
    table(("step", "state", "kept", "loss", "eval loss", "id", "path"), rows)


COMMANDS = (submit, jobs, show, logs, metrics, watch, events, result, checkpoints)
