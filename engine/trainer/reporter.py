"""What a worker tells the world: typed lines in its journal.

The rule: every line a worker writes is made here; `engine.running.ingest` is the reader, kind by kind.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from engine.journal import JournalWriter

_EXACT = {"loss", "lr", "grad_norm", "epoch", "ts"}


class Reporter:
    """Writes one attempt's journal."""

    def __init__(self, journal: JournalWriter) -> None:
        self._journal = journal

    def state(self, to: str, activity: str = "") -> None:
        """Enter a state of the job's life; `activity` says in a few words what is being done."""
        self._journal.append("state", {"to": to, "activity": activity})

    def activity(self, text: str, *, done: float | None = None, eta_s: float | None = None) -> None:
        """Say what is being done, without a change of state; where no steps tell, also what share of the job's work is
        done (0 to 1) and the seconds that are left."""
        told: dict[str, Any] = {"text": text}
        if done is not None:
            told |= {"done": round(done, 4), "eta_s": eta_s}
        self._journal.append("activity", told)

    def points(self, points: list[dict[str, Any]]) -> None:
        """Report telemetry points that belong together, in one write."""
        self._journal.append_all([("point", _short(point)) for point in points])

    def log(self, text: str, stream: str = "train") -> None:
        """Report a line for the user's log; also to the worker's own output file."""
        lines = text.splitlines()
        self._journal.append_all([("log", {"stream": stream, "text": line}) for line in lines])
        print(text, file=sys.stderr if stream == "error" else sys.stdout, flush=True)

    def event(self, kind: str, **payload: Any) -> None:
        """Report something worth a mark in the job's history."""
        self._journal.append("event", {"kind": kind, "payload": payload})

    def steps(self, total: int) -> None:
        """Say how many optimiser steps the job takes, where that follows from the rows."""
        self._journal.append("steps", {"total": total})

    def resume(self, step: int) -> None:
        """Say that training goes on after `step`; what was reported beyond it is void."""
        self._journal.append("resume", {"step": step})

    def checkpoint(self, path: Path, facts: dict[str, Any], size: int) -> None:
        """Report a published checkpoint."""
        self._journal.append("checkpoint", {"path": str(path), "bytes": size, **facts}, durable=True)

    def checkpoint_gone(self, step: int, state: str, **payload: Any) -> None:
        """Report that a checkpoint was removed, or quarantined with the reason."""
        self._journal.append("checkpoint_gone", {"step": step, "state": state, **payload})

    def model(self, facts: dict[str, Any]) -> None:
        """Report the finished model, published."""
        self._journal.append("model", facts, durable=True)

    def result(self, body: dict[str, Any]) -> None:
        """Report the job's result."""
        self._journal.append("result", body, durable=True)

    def memory(self, peak_bytes: int, phase: str) -> None:
        """Report the most memory that the run took on its device, and when: the next plan is corrected by it."""
        self._journal.append("memory", {"peak_bytes": peak_bytes, "phase": phase})

    def end(self, outcome: str, error: str | None = None, cause: str | None = None) -> None:
        """Report the attempt's end: completed, failed or preempted; the last line of the journal."""
        self._journal.append("end", {"outcome": outcome, "error": error, "cause": cause}, durable=True)


def _short(point: dict[str, Any]) -> dict[str, Any]:
    """Return a point with six digits of what was measured with a clock: more are noise, and cost a reader its time."""
    short = {
        key: float(f"{value:.6g}") if type(value) is float and key not in _EXACT else value
        for key, value in point.items()
    }
    return short | {"ts": round(point["ts"], 3)}
