"""From a worker's journal to the store.

The rule: the rows of a batch and the journal offset after it are written in one transaction, so each line counts
once whatever dies in between. Lines of another fence are dropped. No line keeps another out: what the store cannot hold
of one is counted as damaged.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from engine import journal
from engine.jobs import branches
from engine.journal import Record
from engine.order import JOURNAL
from store import Store, asked, attempts, catalog, jobs, memory_peaks, states, telemetry
from store.attempts import Attempt
from store.db import savepoint
from store.library import Database
from store.memory_peaks import Peak
from store.telemetry import Checkpoint, Point

_reported = itemgetter(*Point._fields[:-1])  # the last is the cycle, which most runs have not
_BLANK = dict.fromkeys(Point._fields)
_WORKING = states.ACTIVE - {states.PROVISIONING}
_ENDS = {"completed", "failed", "preempted"}
_MOST = 2**63 - 1  # that SQLite can count to
_FAR = 2.0**53  # no time of day; and false beside what is no number

# What a line raises that is whole, but not of the form that this version writes: its worker may be of another. A store
# that fails raises StoreError, and that is not the line's fault.
_UNFIT = (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError, sqlite3.Error)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("no text")
    # JSON can spell half a surrogate pair; no database can hold it.
    return value.encode(errors="replace").decode()


def _cleaned(value: Any) -> Any:
    """Return `value` with every text in it cleaned as `_text` does: a reader must be able to pass it on."""
    if type(value) is str:
        return _text(value)
    if type(value) is list:
        return [_cleaned(part) for part in value]
    if type(value) is dict:
        return {_text(key): _cleaned(part) for key, part in value.items()}
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise TypeError("no count")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or (type(value) is int and abs(value) > _MOST):
        raise TypeError("no number")
    number: float = value
    return number


def _measured(value: Any) -> float | None:
    return None if value is None else _number(value)


def _share(value: Any) -> float | None:
    if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
        raise TypeError("no share")
    share: float | None = value
    return share


def _seconds(value: Any) -> float | None:
    return value if type(value) in (int, float) and 0 <= value < _FAR else None


@dataclass
class _Ingest:
    """One batch on its way into the store. Points and log lines are gathered and written together."""

    db: Database
    attempt: Attempt
    points: list[tuple[Any, ...]] = field(default_factory=list)  # the values of a `Point` each
    reached: dict[str, Any] | None = None  # the newest training point
    lines: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def job_id(self) -> str:
        return self.attempt.job_id

    def flush(self) -> None:
        """Write the gathered points and lines."""
        if self.points:
            telemetry.add_points(self.db, self.job_id, self.attempt.fence, self.points)
            self.points = []
        if self.reached:
            jobs.update(self.db, self.job_id, step=self.reached["step"], eta_s=_seconds(self.reached.get("eta_s")))
            self.reached = None
        if self.lines:
            telemetry.add_log_lines(self.db, self.job_id, self.lines)
            self.lines = []

    def state(self, record: Record) -> None:
        """Enter a state, or say anew what is done in it. What follows a worker's end is not the worker's to say."""
        if record.data["to"] not in _WORKING:
            raise TypeError("no state of a worker")
        jobs.transition(self.db, self.job_id, record.data["to"], fence=self.attempt.fence, now=record.ts)
        jobs.update(self.db, self.job_id, activity=_text(record.data["activity"]))

    def activity(self, record: Record) -> None:
        """Say what the worker is doing; where it tells, also what share of the work is done, and its estimate."""
        columns: dict[str, Any] = {"activity": _text(record.data["text"])}
        if "done" in record.data:
            columns |= {"done": _share(record.data["done"]), "eta_s": _seconds(record.data.get("eta_s"))}
        jobs.update(self.db, self.job_id, **columns)

    def point(self, record: Record) -> None:
        """Take a telemetry point; a training point also moves the job's step and its estimate."""
        data = record.data
        try:
            values = _reported(data)
        except KeyError:
            values = _reported(_BLANK | data)
        step, phase, ts = values[:3]
        cycle = data.get("cycle", 0)
        # Checked here, or what SQLite cannot hold would keep the whole batch out, for ever.
        if type(step) is not int or not 0 <= step <= _MOST or type(cycle) is not int or not -_FAR < ts < _FAR:
            raise TypeError("not a point")
        if type(phase) is not str or not phase.isascii():
            raise TypeError("no phase")
        row = (*values, cycle)
        for value in row[2:]:
            if type(value) is not float and value is not None and (type(value) is not int or abs(value) > _MOST):
                raise TypeError("no number")
        self.points.append(row)
        if phase == "train":
            self.reached = data

    def log(self, record: Record) -> None:
        """Take a log line."""
        self.lines.append((record.ts, _text(record.data["stream"]), _text(record.data["text"])))

    def event(self, record: Record) -> None:
        """Take an event."""
        kind, payload = _text(record.data["kind"]), record.data["payload"]
        if type(payload) is not dict:
            raise TypeError("no payload")
        jobs.add_event(self.db, self.job_id, kind, payload, now=record.ts)

    def steps(self, record: Record) -> None:
        """Take how many steps the job takes, now that its rows are counted."""
        total = _count(record.data["total"])
        if not total:
            raise TypeError("no job of no steps is counted")
        jobs.update(self.db, self.job_id, total_steps=total)

    def resume(self, record: Record) -> None:
        """Drop what was reported beyond the step at which the worker goes on; steps tell what is done from there."""
        step = _count(record.data["step"])
        telemetry.forget_after(self.db, self.job_id, step)
        jobs.update(self.db, self.job_id, step=step, done=None)
        if self.attempt.fence > 1 or step:
            jobs.add_event(self.db, self.job_id, "resume", {"step": step}, now=record.ts)

    def checkpoint(self, record: Record) -> None:
        """Take a published checkpoint."""
        data = record.data
        row = Checkpoint(
            id=str(uuid.uuid4()),
            job_id=self.job_id,
            step=_count(data["step"]),
            epoch=_number(data["epoch"]),
            loss=_measured(data["loss"]),
            eval_loss=_measured(data["eval_loss"]),
            lr=_measured(data["lr"]),
            path=_text(data["path"]),
            bytes=_count(data["bytes"]),
            state="published",
            created_at=record.ts,
        )
        telemetry.add_checkpoint(self.db, row)
        jobs.update(self.db, self.job_id, last_checkpoint_step=telemetry.newest_checkpoint_step(self.db, self.job_id))
        jobs.add_event(self.db, self.job_id, "checkpoint", {"step": data["step"]}, now=record.ts)
        asked.is_saved(self.db, self.job_id, ts=record.ts, fence=self.attempt.fence)

    def checkpoint_gone(self, record: Record) -> None:
        """Take that a checkpoint was removed or set aside."""
        step, state = _count(record.data["step"]), _text(record.data["state"])
        telemetry.mark_checkpoint(self.db, self.job_id, step, state)
        newest = telemetry.newest_checkpoint_step(self.db, self.job_id)
        jobs.update(self.db, self.job_id, last_checkpoint_step=newest)
        if state == "quarantined":
            jobs.add_event(self.db, self.job_id, "checkpoint_damaged", record.data, now=record.ts)

    def model(self, record: Record) -> None:
        """Register the finished model."""
        for name, value in record.data.items():
            _count(value) if name == "params" else _text(value)
        job = jobs.get(self.db, self.job_id)
        entry = catalog.Model(
            **record.data,
            version=0,
            base_model_id=job.base_model_id or job.source_model_id or "",
            job_id=self.job_id,
            status="ready",
            created_at=record.ts,
        )
        catalog.add_model(self.db, entry)
        jobs.update(self.db, self.job_id, output_model_id=entry.id)

    def result(self, record: Record) -> None:
        """Take the job's result."""
        if type(record.data) is not dict:
            raise TypeError("no result")
        _number(record.data.get("gpu_seconds", 0.0))
        telemetry.set_result(self.db, self.job_id, record.data, now=record.ts)

    def memory(self, record: Record) -> None:
        """Take the peak that the worker measured, beside what was planned."""
        measured = _count(record.data["peak_bytes"])
        plan = jobs.get(self.db, self.job_id).plan
        if plan:
            device, mode, planned = plan["device"], plan["mode"], plan["planned"]
            memory_peaks.record(self.db, Peak(self.job_id, device, mode, planned, measured, record.ts))
        payload = {"peak_bytes": measured, "phase": record.data["phase"], "planned_bytes": plan and plan["needed"]}
        jobs.add_event(self.db, self.job_id, "memory", payload, now=record.ts)

    def end(self, record: Record) -> None:
        """Note how the attempt ended; the job's state follows when the process is gone and its device free."""
        data = record.data
        if data["outcome"] not in _ENDS:
            raise TypeError("no end of a worker")
        detail = json.dumps({name: None if data[name] is None else _text(data[name]) for name in ("error", "cause")})
        attempts.update(self.db, self.job_id, self.attempt.fence, outcome=data["outcome"], detail=detail)


_HANDLERS: dict[str, Callable[[_Ingest, Record], None]] = {
    "state": _Ingest.state,
    "activity": _Ingest.activity,
    "point": _Ingest.point,
    "log": _Ingest.log,
    "event": _Ingest.event,
    "steps": _Ingest.steps,
    "resume": _Ingest.resume,
    "checkpoint": _Ingest.checkpoint,
    "checkpoint_gone": _Ingest.checkpoint_gone,
    "model": _Ingest.model,
    "result": _Ingest.result,
    "memory": _Ingest.memory,
    "end": _Ingest.end,
}
_GATHERED = ("point", "log")  # and written together, later: what they hold is checked before


def ingest(store: Store, attempt: Attempt) -> int:
    """Take in what an attempt's journal holds beyond its stored offset; return the number of lines read.

    Raises StoreError, and OSError on a full disk, with nothing of the batch written.
    """
    batch = journal.read(Path(attempt.directory) / JOURNAL, attempt.journal_offset)
    if batch.offset == attempt.journal_offset:
        return 0
    _have_followed(store, attempt, batch.records)
    with store.write() as db:
        current = attempts.get(db, attempt.job_id, attempt.fence)
        if current is None or current.journal_offset != attempt.journal_offset:
            return 0
        if not attempts.is_current(db, attempt.job_id, attempt.fence):
            return 0
        own = [record for record in batch.records if record.fence == attempt.fence]
        sound = [record for record in own if _is_sound(record)]
        fresh = [record for record in sound if record.seq > attempt.journal_seq]
        damaged = batch.damaged + len(own) - len(sound)
        job = jobs.get(db, attempt.job_id)
        if job.fence == attempt.fence:
            _apply(_Ingest(db, attempt), fresh, damaged)
            if fresh and job.hold:
                jobs.update(db, job.id, hold=None)  # it was said to be stalled, and is not
        attempts.update(
            db,
            attempt.job_id,
            attempt.fence,
            journal_offset=batch.offset,
            journal_seq=max([attempt.journal_seq, *(record.seq for record in fresh)]),
            heard_at=fresh[-1].ts if fresh else current.heard_at,
        )
    return len(batch.records) + batch.damaged


def _have_followed(store: Store, attempt: Attempt, records: Sequence[Record]) -> None:
    """Have checkpoints that were saved again marked for those who start from them; outside the transaction, for that
    takes the disk's time. Raises OSError on a full disk."""
    for record in records:
        if record.kind == "checkpoint" and record.fence == attempt.fence:
            with suppress(*_UNFIT):  # such a line is counted as damaged
                step, path = _count(record.data["step"]), Path(_text(record.data["path"]))
                branches.follow(store.read(), attempt.job_id, step, path)


def _is_sound(record: Record) -> bool:
    """Say whether what stands around a line's data can be held."""
    seq, ts = record.seq, record.ts
    return (
        type(seq) is int
        and 0 <= seq <= _MOST
        and (type(ts) is float or type(ts) is int)
        and -_FAR < ts < _FAR
        and type(record.kind) is str
    )


def _apply(work: _Ingest, records: list[Record], damaged: int) -> None:
    for record in records:
        handler = _HANDLERS.get(record.kind)
        try:
            if handler and record.kind in _GATHERED:
                handler(work, record)
            elif handler:
                work.flush()
                with savepoint(work.db):
                    handler(work, record._replace(data=_cleaned(record.data)))
        except _UNFIT:
            damaged += 1
    work.flush()
    if damaged:
        now = records[0].ts if records else work.attempt.started_at
        jobs.add_event(work.db, work.job_id, "journal_damaged", {"lines": damaged}, now=now)
