"""What the poller tells the app: immutable snapshots, each of which makes the one before it superfluous.

The rule: a message carries all that is known, never an increment, so that a burst may collapse into its last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from textual.message import Message

from engine.running.evidence import Evidence
from engine.service import Checkpoint, Device, Event, Job, LogLine, Point

LOG_LINES = 2000  # as many as the store keeps


@dataclass(frozen=True)
class Supervision:
    """Whether a supervisor works on the queue, where its API listens, and whether this app may only look."""

    running: bool = False
    url: str | None = None
    read_only: bool = False


@dataclass(frozen=True)
class Overview:
    """All runs and the machine. `latest` is each run's newest training point, `evidence` what speaks for those that
    the store calls worked on; `error` says why data may be old, and `loaded` whether the store was ever read."""

    jobs: tuple[Job, ...] = ()
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    latest: Mapping[str, Point] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    supervision: Supervision | None = None
    error: str = ""
    loaded: bool = False

    def name(self, entry_id: str | None) -> str:
        """Return the name of a model or dataset."""
        return self.names.get(entry_id, "…") if entry_id else "–"

    def after(self, job: Job) -> str:
        """Return the name of the run that this one starts after; empty where it starts by itself."""
        return self.name(job.after_id) if job.after_id else ""

    @property
    def lost(self) -> int:
        """How many runs have neither a worker nor a supervisor."""
        return self._seen("lost")

    @property
    def alive(self) -> int:
        """How many runs have a worker that lives."""
        return self._seen("alive")

    def _seen(self, what: Evidence) -> int:
        return sum(evidence == what for evidence in self.evidence.values())

    def job(self, job_id: str | None) -> Job | None:
        """Return the run with this id, if it is there."""
        return next((job for job in self.jobs if job.id == job_id), None)


@dataclass(frozen=True)
class RunView:
    """Everything recorded about one run. A part that did not change is the same object as before.

    `points` are those of the run's own steps; `aside` those of phases that count other things; `after` names the run
    that it starts after.
    """

    job: Job
    points: tuple[Point, ...] = ()
    aside: tuple[Point, ...] = ()
    logs: tuple[LogLine, ...] = ()
    events: tuple[Event, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    result: Mapping[str, Any] | None = None
    model: str = "–"
    dataset: str = "–"
    evidence: Evidence | None = None
    after: str = ""


@dataclass(frozen=True)
class ComparedRun:
    """One of several runs that are looked at side by side: its own points in few, and what it reported."""

    job: Job
    points: tuple[Point, ...] = ()
    result: Mapping[str, Any] | None = None
    model: str = "–"
    dataset: str = "–"


@dataclass(frozen=True)
class Comparison:
    """The runs that were asked for, those of them that were read so far, and those that are in the store no more."""

    wanted: tuple[str, ...] = ()
    runs: tuple[ComparedRun, ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def unread(self) -> int:
        """How many runs are still to be read."""
        return len(self.wanted) - len(self.runs) - len(self.gone)


class OverviewChanged(Message):
    """The list of runs or the machine changed."""

    def __init__(self, overview: Overview) -> None:
        super().__init__()
        self.overview = overview

    def can_replace(self, message: Message) -> bool:
        """A later overview holds everything that an earlier one does."""
        return isinstance(message, OverviewChanged)


class RunChanged(Message):
    """The watched run changed."""

    def __init__(self, view: RunView) -> None:
        super().__init__()
        self.view = view

    def can_replace(self, message: Message) -> bool:
        """A later view of the same run holds everything that an earlier one does."""
        return isinstance(message, RunChanged) and message.view.job.id == self.view.job.id


class ComparisonChanged(Message):
    """Runs that are compared changed, or more of them were read."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__()
        self.comparison = comparison

    def can_replace(self, message: Message) -> bool:
        """A later comparison holds everything that an earlier one does."""
        return isinstance(message, ComparisonChanged)


class RunGone(Message):
    """The watched run is not in the store (any more)."""

    def __init__(self, job_id: str) -> None:
        super().__init__()
        self.job_id = job_id
