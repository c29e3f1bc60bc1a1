"""The command line: the app's twin. Without a command it opens the app.

The rule: a command translates, calls the service, prints; modules are loaded when their command is used.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from engine.service import package_version
from fusion_tui.cli.output import Failing, Session, say

# Which module holds which commands: loaded on use, so that `fusion-tui` opens the app without the rest.
MODULES = {
    "demo": "demo",
    "serve": "serve",
    "submit": "runs",
    "jobs": "runs",
    "show": "runs",
    "logs": "runs",
    "metrics": "runs",
    "watch": "runs",
    "events": "runs",
    "result": "runs",
    "checkpoints": "runs",
    "cancel": "changing",
    "retry": "changing",
    "checkpoint": "changing",
    "edit": "changing",
    "rm": "changing",
    "models": "catalog",
    "datasets": "catalog",
    "recommend": "recommend",
    "doctor": "doctor",
    "token": "serve",
    "keys": "serve",
}


class LateCommands(Failing):
    """Finds commands by name in their modules."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Load the module that holds command `name`."""
        if name not in MODULES:
            return None
        module = import_module(f"fusion_tui.cli.{MODULES[name]}")
        found: click.Command = next(command for command in module.COMMANDS if command.name == name)
        return found

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest."""
        import difflib

        name = arguments[0]
        if name not in MODULES and not name.startswith("-"):
            close = difflib.get_close_matches(name, MODULES, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else " See: fusion-tui --help"
            context.fail(f"No such command '{name}'.{hint}")
        return super().resolve_command(context, arguments)


@click.group(cls=LateCommands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_version(), prog_name="fusion-tui")
@click.pass_context
def main(context: click.Context) -> None:
    """Train language models on your own card.

    Without a command: the terminal app. FUSION_HOME moves the data folder, FUSION_PORT the API's port.
    """
    session = context.ensure_object(Session)
    if context.invoked_subcommand:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        say("The app needs a terminal. In scripts use the commands: fusion-tui --help")
        sys.exit(1)
    from fusion_tui.app import run_app

    click.echo(run_app(session.service))
