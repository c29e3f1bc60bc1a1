"""Memory plans on the command line: what `submit --dry-run` prints, and the lines of `show` and `result`."""

from __future__ import annotations

import click

from engine.plans.planning import MemoryReport
from engine.resources import size_text
from fusion_tui.cli.output import document, say, table


def show_plan(report: MemoryReport, *, as_json: bool) -> None:
    """Print a plan: the verdict first, then its parts, then what would fit."""
    if as_json:
        document(report.document())
        return
    click.echo(report.summary)
    facts = [f"{report.device}, {size_text(report.total)}", f"the peak is in {report.plan.phase}", report.correction]
    click.echo(" · ".join(fact for fact in facts if fact))
    if report.settled:
        click.echo(f"left open, would run with {', '.join(f'{key}={value}' for key, value in report.settled.items())}")
    click.echo()
    table(("part", "needs"), [(part, size_text(size)) for part, size in report.plan.parts.items() if size])
    if report.alternatives:
        click.echo()
        table(("would fit", "needs"), [(change, size_text(change.needed)) for change in report.alternatives])
    elif not report.fits:
        say("No setting makes it fit: use a smaller model.")


def memory_line(planned: int | None, measured: int | None) -> str:
    """Return how many bytes a run was planned to take and took, or nothing where neither is known."""
    if not measured:
        return f"memory: {size_text(planned)} planned" if planned else ""
    if not planned:
        return f"memory: {size_text(measured)} at its peak"
    return f"memory: {size_text(measured)} at its peak, {size_text(planned)} planned ({measured / planned - 1:+.0%})"
