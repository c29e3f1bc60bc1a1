"""The command doctor: what may be wrong here, and what to do about it.

The rule: it opens no service, for opening one makes and migrates; it works where nothing else does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict

import click

from engine.doctor.examination import CHECKS, examine
from engine.doctor.finding import Finding, Machine
from engine.errors import EngineError
from engine.paths import Home
from engine.service import package_version
from engine.settings import Settings, load
from engine.text import clean_text
from fusion_tui.cli.output import document, json_option, progress, progress_done

GLYPHS = {"ok": "✓", "warning": "▲", "error": "✗"}
NAME_WIDTH = max(len("bitsandbytes"), *(len(name) for name, _ in CHECKS))


def machine() -> Machine:
    """Return this machine with the data folder and the settings that every command would use."""
    try:
        settings, error = load(), ""
    except EngineError as found:
        settings, error = Settings(), str(found)
    return Machine(Home.default(), settings, error, tell=lambda what: progress(f"{what}…", None))


def lines(finding: Finding) -> Iterator[str]:
    """Return a finding as lines: glyph, word, name and what was seen; the remedy on a line of its own."""
    glyph = GLYPHS[finding.level]
    yield clean_text(f"{glyph} {finding.level:<7}  {finding.name:<{NAME_WIDTH}}  {finding.seen}")
    if finding.remedy:
        yield clean_text(f"{'':<{NAME_WIDTH + 13}}→ {finding.remedy}")


@click.command()
@json_option
def doctor(*, as_json: bool) -> None:
    """Look for what may be wrong, change nothing; exit 1 where something is.

    Python, settings, data folder, disk, store, supervisor, port, workers, logout, catalogue, leftovers, checkpoints,
    device and the training interpreter. With --json: `version`, `home`, `errors` and `warnings` (their numbers), and
    `findings`, each with `name`, `level` (ok, warning or error), `seen` and `remedy` (empty where none is needed).
    """
    looked_at = machine()
    found: list[Finding] = []
    for finding in examine(looked_at):
        found.append(finding)
        if not as_json:
            progress_done()
            click.echo("\n".join(lines(finding)))
    progress_done()
    errors, warnings = (sum(one.level == level for one in found) for level in ("error", "warning"))
    if as_json:
        document(
            {
                "version": package_version(),
                "home": str(looked_at.home.root),
                "errors": errors,
                "warnings": warnings,
                "findings": [asdict(finding) for finding in found],
            }
        )
    elif errors or warnings:
        click.echo(f"\n{errors} errors, {warnings} warnings. → tells what to do.")
    else:
        click.echo("\nNothing is wrong.")
    if errors:
        sys.exit(1)


COMMANDS = (doctor,)
