"""Following a run until it ends: live lines on stderr, the same numbers that the app shows."""

from __future__ import annotations

import sys
import time

import click

from engine.running.evidence import Evidence
from engine.service import Job, Point, Service
from fusion_tui import daemon
from fusion_tui.cli.output import say

POLL_SECONDS = 0.25
LINE_SECONDS = 2.0


def duration(seconds: float | None) -> str:
    """Return seconds as text: 45 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def shown_state(job: Job, seen: Evidence | None = None) -> str:
    """Return a run's state, or what speaks against it: a dead run is never said to run."""
    return {"gone": "worker gone", "lost": "lost?"}.get(seen or "", job.state)


def how_far(job: Job) -> str:
    """Return the steps that a run has made of all, or its share of work done where it makes none."""
    return f"{job.step}/{job.total_steps}" if job.total_steps else f"{job.progress:.0%}"


def status_line(job: Job, point: Point | None, seen: Evidence | None = None) -> str:
    """Return one line that says how far a run is."""
    far = f"step {how_far(job)} ({job.progress:.0%})" if job.total_steps else how_far(job)
    parts = [f"{shown_state(job, seen):<13}", far]
    if point and point.loss is not None:
        parts += [f"loss {point.loss:.3f}", f"{point.throughput or 0:,.0f} tok/s"]
    if seen in ("gone", "lost"):
        return " · ".join(parts)
    if job.eta_s is not None and not job.finished:
        parts.append(f"{duration(job.eta_s)} left")
    if job.hold or job.activity not in ("", "training"):
        parts.append(job.hold or job.activity)
    return " · ".join(parts)


class _Printer:
    """Prints a status line when it changed: rewritten in a terminal, a new line now and then elsewhere."""

    def __init__(self) -> None:
        self._last, self._printed_at, self._state = "", 0.0, ""

    def show(self, line: str, state: str) -> None:
        now = time.monotonic()
        if sys.stderr.isatty():
            if line != self._last:
                click.echo(f"\r\x1b[K{line}", nl=False, err=True)
        elif state != self._state or (line != self._last and now - self._printed_at >= LINE_SECONDS):
            click.echo(line, err=True)
            self._printed_at = now
        self._last, self._state = line, state

    def end(self) -> None:
        if sys.stderr.isatty() and self._last:
            click.echo("", err=True)


def follow(service: Service, job_id: str) -> Job:
    """Show a run's progress until it is finished, or waits for one that failed, and return it.

    Ctrl+C leaves the run going.
    """
    printer = _Printer()
    checked = 0.0
    try:
        while True:
            job = service.job(job_id)
            printer.show(status_line(job, service.latest_points([job_id]).get(job_id)), job.state)
            if job.finished or service.is_stuck(job):
                break
            if time.monotonic() - checked > 5:
                daemon.ensure_running(service.home)
                checked = time.monotonic()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        printer.end()
        say(f"The run goes on. Watch it again: fusion-tui watch {job_id[:8]}")
        raise SystemExit(130) from None
    printer.end()
    if not job.finished:
        say(f"{job.name} waits, {job.hold}")
    return job
