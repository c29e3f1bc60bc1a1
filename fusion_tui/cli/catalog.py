"""Commands about models and datasets: list, add, rm, inspect."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import click

from engine import rows
from engine.resources import size_text
from engine.service import AnyModel, Dataset, Service, clean_text
from fusion_tui.api import fusion_entries as answers
from fusion_tui.cli.output import Session, document, json_option, pass_session, progress, progress_done, say, table


def _model_documents(service: Service) -> list[dict[str, Any]]:
    base = [
        answers.BaseModelEntry.model_validate(vars(entry)).model_dump(mode="json") for entry in service.base_models()
    ]
    own = [answers.ModelEntry.of(entry).model_dump(mode="json") for entry in service.models()]
    return [{"kind": "base", **entry} for entry in base] + [{"kind": "own", **entry} for entry in own]


def _say_removed(entry: AnyModel | Dataset, as_json: bool) -> None:
    if as_json:
        document({"removed": entry.id})
    else:
        say(f"Removed {entry.name} (version {entry.version}).")


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, *, as_json: bool) -> None:
    """List the models that runs can start from; `add` and `rm` change the list."""
    if context.invoked_subcommand:
        return
    service = context.ensure_object(Session).service
    if as_json:
        document(_model_documents(service))
        return
    base = [("base", m.id[:8], m.name, m.version, m.family, f"{m.params:,}", m.path) for m in service.base_models()]
    own = [("own", m.id[:8], m.name, m.version, m.family, f"{m.params:,}", m.path) for m in service.models()]
    table(("kind", "id", "name", "version", "family", "parameters", "path"), [*base, *own])


@models.command("add")
@click.argument("source", metavar="PATH_OR_HUB_ID")
@click.option("--name", required=True, help="Name in the catalogue.")
@json_option
@pass_session
def add_model(session: Session, *, source: str, name: str, as_json: bool) -> None:
    """Add a model: a Hugging Face folder (used where it lies), a GGUF file (converted), or a hub name."""
    entry = session.service.add_model(source, name, progress)
    progress_done()
    if as_json:
        document(answers.BaseModelEntry.model_validate(vars(entry)).model_dump(mode="json"))
    else:
        say(f"Added {entry.name} (version {entry.version}): {entry.family}, {entry.params:,} parameters.")


@models.command("rm")
@click.argument("reference", metavar="MODEL")
@json_option
@pass_session
def remove_model(session: Session, *, reference: str, as_json: bool) -> None:
    """Remove a model; a folder that was added where it lies stays there."""
    _say_removed(session.service.remove_model(reference), as_json)


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def datasets(context: click.Context, *, as_json: bool) -> None:
    """List the datasets; `add`, `inspect` and `rm` work on one."""
    if context.invoked_subcommand:
        return
    service = context.ensure_object(Session).service
    if as_json:
        document([answers.DatasetEntry.model_validate(vars(d)).model_dump(mode="json") for d in service.datasets()])
        return
    listed = [
        (d.id[:8], d.name, d.version, d.format, f"{d.rows:,}", size_text(d.bytes), d.status) for d in service.datasets()
    ]
    table(("id", "name", "version", "format", "rows", "size", "status"), listed)


@datasets.command("add")
@click.argument("source", metavar="PATH")
@click.option("--name", required=True, help="Name in the catalogue; the same name again is a new version.")
@json_option
@pass_session
def add_dataset(session: Session, *, source: str, name: str, as_json: bool) -> None:
    """Add a dataset: a JSONL file with rows of text, messages, or prompt and completion. It is copied."""
    entry = session.service.add_dataset(source, name, progress)
    progress_done()
    if as_json:
        document(answers.DatasetEntry.model_validate(vars(entry)).model_dump(mode="json"))
    else:
        say(f"Added {entry.name} (version {entry.version}): {entry.rows:,} rows of {entry.format}.")


@datasets.command("inspect")
@click.argument("reference", metavar="DATASET")
@click.option("--rows", "count", type=click.IntRange(1, 1000), default=3, show_default=True, help="Rows to show.")
@json_option
@pass_session
def inspect(session: Session, *, reference: str, count: int, as_json: bool) -> None:
    """Show what a dataset holds and its first rows."""
    entry = session.service.dataset(reference)
    first = list(islice(rows.read(Path(entry.path)), count))
    if as_json:
        shown = answers.DatasetEntry.model_validate(vars(entry)).model_dump(mode="json")
        document({**shown, "format": entry.format, "rows": entry.rows, "preview": [row.fields for row in first]})
        return
    click.echo(f"{entry.name} version {entry.version}: {entry.rows:,} rows of {entry.format}, {size_text(entry.bytes)}")
    for row in first:
        click.echo(f"line {row.line}: {clean_text(json.dumps(row.fields, ensure_ascii=False))}")


@datasets.command("rm")
@click.argument("reference", metavar="DATASET")
@json_option
@pass_session
def remove_dataset(session: Session, *, reference: str, as_json: bool) -> None:
    """Remove a dataset version and its copy."""
    _say_removed(session.service.remove_dataset(reference), as_json)


COMMANDS = (models, datasets)
