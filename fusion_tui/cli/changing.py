"""Commands that change a run: cancel, retry, checkpoint (save now), edit, rm."""

from __future__ import annotations

from typing import Any

import click

from engine.service import Job
from fusion_tui import daemon
from fusion_tui.cli.output import Session, document, json_option, pass_session, say
from fusion_tui.cli.runs import job_document


def _tell(job: Job, words: str, *, as_json: bool) -> None:
    """Print the job as it is now, or in words what comes of the command."""
    if as_json:
        document(job_document(job))
    else:
        say(words)


@click.command()
@click.argument("job_ref", metavar="ID")
@json_option
@pass_session
def cancel(session: Session, *, job_ref: str, as_json: bool) -> None:
    """Stop a run: it finishes its step and saves first."""
    job = session.service.cancel(session.service.find_job(job_ref).id)
    _tell(job, f"{job.name} is cancelled." if job.finished else f"{job.name} stops after its step.", as_json=as_json)


@click.command()
@click.argument("job_ref", metavar="ID")
@json_option
@pass_session
def retry(session: Session, *, job_ref: str, as_json: bool) -> None:
    """Queue a failed or cancelled run again; it goes on from its newest checkpoint."""
    service = session.service
    job = service.retry(service.find_job(job_ref).id)
    daemon.ensure_running(service.home)
    _tell(job, f"{job.name} is queued again.", as_json=as_json)


@click.command()
@click.argument("job_ref", metavar="ID")
@json_option
@pass_session
def checkpoint(session: Session, *, job_ref: str, as_json: bool) -> None:
    """Have a run save a checkpoint now, at the end of its step; it goes on."""
    job = session.service.save_now(session.service.find_job(job_ref).id)
    _tell(job, f"{job.name} saves at the end of its step. See: fusion-tui checkpoints {job.id[:8]}", as_json=as_json)


@click.command()
@click.argument("job_ref", metavar="ID")
@click.option("--name", help="Its new name.")
@click.option("--tag", "tags", multiple=True, help="Its tags from now on; may be repeated.")
@click.option("--no-tags", is_flag=True, help="Take all its tags away.")
@click.option("--notes", help="Its new notes.")
@json_option
@pass_session
def edit(
    session: Session,
    *,
    job_ref: str,
    name: str | None,
    tags: tuple[str, ...],
    no_tags: bool,
    notes: str | None,
    as_json: bool,
) -> None:
    """Change a run's name, tags or notes; what is not given stays as it is."""
    given: dict[str, Any] = {"name": name, "tags": list(tags) if tags or no_tags else None, "notes": notes}
    changes = {field: value for field, value in given.items() if value is not None}
    job = session.service.edit(session.service.find_job(job_ref).id, changes)
    _tell(job, f"{job.name}  tags: {', '.join(job.tags) or 'none'}  notes: {job.notes or 'none'}", as_json=as_json)


@click.command()
@click.argument("job_ref", metavar="ID")
@json_option
@pass_session
def rm(session: Session, *, job_ref: str, as_json: bool) -> None:
    """Delete a finished run with its telemetry and checkpoints, pinned ones too; its model stays."""
    job = session.service.find_job(job_ref)
    session.service.delete(job.id)
    if as_json:
        document({"deleted": job.id})
    else:
        say(f"{job.name} is deleted.")


COMMANDS = (cancel, retry, checkpoint, edit, rm)
