"""The top of a run: name and state, progress, and one line on what it is doing or why it is not."""

from __future__ import annotations

import textwrap

from rich.text import Text
from textual.widgets import Static

from fusion_tui import format as fmt
from fusion_tui.messages import RunView
from fusion_tui.widgets.shaping import summary

LINES = 5  # at most, as the style sheet has it
WIDTH_LEAST = 20  # before the first layout there is none


class RunHeader(Static):
    """Two lines on a run, one more where its model's shape changes, and where something is wrong the rest of five."""

    _lines = 0

    def show_run(self, view: RunView) -> None:
        """Show a run's state."""
        lines = [_title(view), _progress(view, self.size.width)]
        if shape := summary(view):
            lines.append(Text(shape, style="dim"))
        if trouble := fmt.trouble(view.job, view.evidence):
            wrapped = textwrap.wrap(
                trouble, max(self.size.width, WIDTH_LEAST), max_lines=LINES - len(lines), placeholder=" …"
            )
            lines += [Text(line, style=trouble_style(view)) for line in wrapped]
        # Laying out paints the whole screen: only where a line came or went.
        self.update(Text("\n").join(lines), layout=len(lines) != self._lines)
        self._lines = len(lines)


def _title(view: RunView) -> Text:
    job = view.job
    where = device(view)
    return Text.assemble(
        fmt.state(job, view.evidence),
        "  ",
        (fmt.clean(job.name), "bold"),
        (f"  {job.type} of {fmt.clean(view.model)}", "dim"),
        (f" on {fmt.clean(view.dataset)}" if job.dataset_id else "", "dim"),
        (f"  ↳ after {fmt.clean(view.after)}" if view.after else "", "dim"),
        (f"  {where}" if where else "", "dim"),
    )


def trouble_style(view: RunView) -> str:
    """Return how trouble is drawn: red where nobody mends it, yellow where it may pass."""
    return "bold red" if view.job.error or view.evidence == "lost" else "yellow"


def device(view: RunView) -> str:
    """Return the device that the newest attempt was given, as its events tell."""
    named = (event.payload.get("device") for event in reversed(view.events))
    return fmt.clean(str(next(filter(None, named), "")))


def _progress(view: RunView, width: int) -> Text:
    job = view.job
    newest = next((point for point in reversed(view.points) if point.phase == "train"), None)
    parts = [fmt.how_far(job)]
    if not job.finished and job.eta_s is not None:
        parts.append(f"ETA {fmt.eta(job, view.evidence)}")
    if newest and newest.throughput:
        parts.append(f"{fmt.count(newest.throughput)} tok/s")
    if job.retries:
        parts.append("1 retry" if job.retries == 1 else f"{job.retries} retries")
    if job.activity and view.evidence in (None, "alive", "starting") and not job.finished:
        parts.append(fmt.clean(job.activity))
    facts = " · ".join(parts)
    return Text.assemble((fmt.bar(job.progress, max(8, min(40, width - len(facts) - 2))), "cyan"), "  ", facts)
