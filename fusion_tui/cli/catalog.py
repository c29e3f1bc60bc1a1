"""Commands about models and datasets: list, add, rm, inspect."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import click

from engine.catalog import LOSS_ON, SEQ_LEN_LEAST, SEQ_LEN_MOST
from engine.data import rows
from engine.data.inspection import Inspection
from engine.errors import InvalidData
from engine.resources import size_text
from engine.service import AnyModel, Dataset, Lineage, Service
from engine.text import clean_text
from fusion_tui.api.fusion import entries as answers
from fusion_tui.cli.output import Session, document, json_option, pass_session, progress, progress_done, say, table


def _model_documents(service: Service) -> list[dict[str, Any]]:
    base = [
        answers.BaseModelEntry.model_validate(vars(entry)).model_dump(mode="json") for entry in service.base_models()
    ]
    made = service.models()
    lineages = service.lineages(made)
    own = [answers.ModelEntry.of(entry, lineages[entry.id]).model_dump(mode="json") for entry in made]
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
    made = service.models()
    lineages = service.lineages(made)
    listed: list[AnyModel] = [*service.base_models(), *made]
    rows_of_models = [
        ("own" if m.id in lineages else "base", *_named(m), _origin(lineages.get(m.id)), *_facts(m)) for m in listed
    ]
    table(("kind", "id", "name", "version", "from", "family", "parameters", "path"), rows_of_models)


def _named(model: AnyModel) -> tuple[object, ...]:
    return model.id[:8], model.name, model.version


def _facts(model: AnyModel) -> tuple[object, ...]:
    return model.family, f"{model.params:,}", model.path


def _origin(lineage: Lineage | None) -> str:
    """Return an arrow to the model that one was made from; nothing for one that was imported."""
    if lineage is None:
        return ""
    return f"← {lineage.parent.name if lineage.parent else '(removed)'}"


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
@click.argument("source", metavar="PATH_OR_HUB_ID")
@click.option("--name", required=True, help="Name in the catalogue; the same name again is a new version.")
@click.option("--format", "form", type=click.Choice(list(rows.SHAPES)), help="The format of every row; else detected.")
@click.option("--drop-bad", is_flag=True, help="Leave out rows that cannot be used, and say which.")
@json_option
@pass_session
def add_dataset(session: Session, *, source: str, name: str, form: str | None, drop_bad: bool, as_json: bool) -> None:
    """Add a dataset: a file of rows (JSONL, JSON, CSV, TSV, Parquet, plain text), a folder of these, or a hub name.

    Rows are texts, messages, prompt and completion, Alpaca, ShareGPT, DPO or GRPO rows. They are copied.
    """
    entry = session.service.add_dataset(source, name, progress, form=form, drop_bad=drop_bad)
    progress_done()
    if as_json:
        document(answers.DatasetEntry.model_validate(vars(entry)).model_dump(mode="json"))
        return
    count = f"{entry.rows:,} row{'s' * (entry.rows != 1)}"
    say(f"Added {entry.name} (version {entry.version}): {count} of {_formats(entry)}.")
    facts = entry.facts
    if dropped := facts.get("dropped"):
        more = f"; and {dropped - len(facts['reasons']):,} more" if dropped > len(facts["reasons"]) else ""
        say(f"Left out {dropped:,} bad row{'s' * (dropped != 1)}: {'; '.join(facts['reasons'])}{more}.")
    if left_out := facts.get("left_out"):
        say(f"Read {len(facts['files']):,} files and left out: {', '.join(left_out)}.")


def _formats(entry: Dataset) -> str:
    """Return a dataset's format, of a mixed one how many rows have which."""
    shapes = entry.facts.get("shapes", {})
    return ", ".join(f"{shape} ({count:,})" for shape, count in shapes.items()) if len(shapes) > 1 else entry.format


@datasets.command("inspect")
@click.argument("reference", metavar="DATASET")
@click.option("--model", help="Show the rows as this model will see them: the first batch with its mask.")
@click.option("--seq-len", type=click.IntRange(SEQ_LEN_LEAST, SEQ_LEN_MOST), help="Tokens per sequence.")
@click.option("--format", "form", type=click.Choice(list(rows.SHAPES)), help="Read every row as this format.")
@click.option("--loss-on", type=click.Choice(LOSS_ON), help="What of the rows is trained: the setting of a run.")
@click.option("--system-prompt", help="Put before conversations that have none: the setting of a run.")
@click.option("--rows", "count", type=click.IntRange(1, 1000), default=3, help="Rows to show without a model; 3.")
@json_option
@pass_session
def inspect(
    session: Session,
    *,
    reference: str,
    model: str | None,
    seq_len: int | None,
    form: str | None,
    loss_on: str | None,
    system_prompt: str | None,
    count: int,
    as_json: bool,
) -> None:
    """Show what a dataset holds: its first rows, or with --model what that model will see of it.

    Ends with 1 where rows would stop a fine-tune, naming them.
    """
    service = session.service
    entry = service.dataset(reference)
    if model is None:
        _show_rows(entry, list(islice(rows.read(Path(entry.path), form), count)), as_json)
        return
    chosen = service.model(model)
    asked = {"seq_len": seq_len, "form": form, "loss_on": loss_on, "system_prompt": system_prompt}
    found = service.inspect_dataset(entry.id, chosen.id, **asked, progress=progress)
    progress_done()
    if as_json:
        document(answers.InspectionEntry.of(entry, chosen, found).model_dump(mode="json"))
    else:
        _show_mask(f"{entry.name} version {entry.version} as {chosen.name} sees it", found)
    if found.stops:
        raise InvalidData(f"A fine-tune on {entry.name} would stop: {found.stops}.")


def _show_rows(entry: Dataset, first: list[rows.Row], as_json: bool) -> None:
    if as_json:
        shown = answers.DatasetEntry.model_validate(vars(entry)).model_dump(mode="json")
        document({**shown, "preview": [row.fields for row in first]})
        return
    size = size_text(entry.bytes)
    click.echo(f"{entry.name} version {entry.version}: {entry.rows:,} rows of {_formats(entry)}, {size}")
    if "characters" in entry.facts:
        of_a_row = " · ".join(f"{name} {entry.facts[name]:,}" for name in ("p50", "p95", "p99", "max"))
        click.echo(f"{entry.facts['characters']:,} characters; of a row: {of_a_row}")
    for row in first:
        click.echo(f"line {row.line}: {clean_text(json.dumps(row.fields, ensure_ascii=False))}")


def _show_mask(title: str, found: Inspection) -> None:
    """Print the mask view, with colours where stdout is a terminal that takes them."""
    from rich.console import Console
    from rich.text import Text

    from fusion_tui import mask

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(clean_text(title), style="bold"))
    for name, words in mask.summary(found):
        console.print(Text.assemble((f"{name:<11}", "dim"), words))
    if found.histogram:
        console.print(Text("\nrow length in tokens", style="bold"))
    for line in mask.histogram(found, min(console.width, 100)):
        console.print(line)
    if found.batch:
        console.print(Text(f"\nfirst batch (step 1, seed 0):   {mask.LEGEND}", style="bold"))
        for line in mask.batch(found, console.width):
            console.print(line)


@datasets.command("rm")
@click.argument("reference", metavar="DATASET")
@json_option
@pass_session
def remove_dataset(session: Session, *, reference: str, as_json: bool) -> None:
    """Remove a dataset version and its copy."""
    _say_removed(session.service.remove_dataset(reference), as_json)


COMMANDS = (models, datasets)
