"""The command that says where to start: `recommend`."""

from __future__ import annotations

import shlex

import click

from engine.jobs.hyperparams import HYPERPARAMS
from engine.plans.recommend import DISCLAIMER, FINETUNE, TYPES, Value
from fusion_tui.api.fusion.recommend import Recommended
from fusion_tui.cli.output import Session, document, json_option, pass_session, table


def _number(value: float | int | str) -> str:
    """Return a value as the notes write it."""
    return f"{value:.1e}" if isinstance(value, float) else str(value).lower()


def _window(one: Value) -> str:
    if one.low is None or one.high is None:
        return ""
    return f"{_number(one.low)} … {_number(one.high)}"


@click.command()
@click.option("--model", required=True, help="Model to start from: id or name.")
@click.option("--dataset", required=True, help="Dataset to train on: id or name.")
@click.option("--type", "type_", type=click.Choice(TYPES), default=FINETUNE, show_default=True, help="Type of job.")
@click.option(
    "--training-type", type=click.Choice(["lora", "full"]), default="lora", show_default=True, help="What learns."
)
@json_option
@pass_session
def recommend(session: Session, *, model: str, dataset: str, type_: str, training_type: str, as_json: bool) -> None:
    """Say where to start: values, the windows they may move in, reasons, memory."""
    advice = session.service.recommend(model=model, dataset=dataset, type=type_, training_type=training_type)
    if as_json:
        document(Recommended.of(advice).model_dump(mode="json", exclude_unset=True))
        return
    made = advice.made
    rows = [(name, _number(one.value), _window(one), one.why) for name, one in made.values.items()]
    table(("setting", "value", "window", "why"), rows)
    click.echo()
    memory = [f"Memory: {advice.memory.summary}."] if advice.memory else []
    for note in (*made.notes, *memory, DISCLAIMER):
        click.echo(f"- {note}")
    words = ["fusion-tui", "submit", type_, "--model", model, "--dataset", dataset]
    for name, one in made.values.items():
        if one.value != HYPERPARAMS[type_].model_fields[name].default:
            value = f"{one.value:g}" if isinstance(one.value, float) else str(one.value).lower()
            words += ["--set", f"{name}={value}"]
    click.echo(f"\n$ {shlex.join(words)}")


COMMANDS = (recommend,)
