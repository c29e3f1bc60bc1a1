"""How commands speak: documents on stdout, everything else on stderr, errors as exit codes.

The rule: with --json, stdout carries one JSON document and nothing else. Exit codes: 0 ok, 1 failed, 2 usage.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import click

from engine.errors import EngineError, InvalidRequest
from engine.service import Service
from engine.text import clean_text
from store import StoreError

Command = TypeVar("Command", bound=Callable[..., Any])


class Failing(click.Group):
    """A command group in which an error of the engine or the store is one clear line and an exit code."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except InvalidRequest as error:
            for fault in error.faults:
                say(f"Error: {fault}")
            context.exit(2)
        except (EngineError, StoreError) as error:
            say(f"Error: {error}")
            context.exit(1)
        except sqlite3.Error as error:
            say(f"Error: the job store failed: {error}")
            context.exit(1)
        except BrokenPipeError:
            # The reader left (| head): not our failure.
            sys.stderr.close()
            context.exit(0)
        except OSError as error:
            say(f"Error: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}")
            context.exit(1)


class Session:
    """One invocation's service, opened when a command first asks for it."""

    @cached_property
    def service(self) -> Service:
        """The service of the data folder."""
        service = Service()
        if service.read_only:
            say(f"Read-only: {service.home.root} can be looked at here and not changed.")
        return service


pass_session = click.make_pass_decorator(Session, ensure=True)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def say(text: str) -> None:
    """Tell the user something that is not the command's answer."""
    click.echo(clean_text(text), err=True)


def document(value: Any) -> None:
    """Print the answer as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns as wide as they need to be."""
    cells = [[clean_text(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headings), *cells]) for i in range(len(headings))]
    for line in [list(headings), *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def progress(what: str, share: float | None) -> None:
    """Show how far long work is: one line, rewritten where stderr is a terminal."""
    text = what if share is None else f"{what} {share:.0%}"
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)
    else:
        click.echo(text, err=True)


def progress_done() -> None:
    """End the line that `progress` rewrote."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
