"""The processes of this data folder that live now: the supervisor and the workers of open attempts.

The rule: only a process that still is the one that was written down is told of; nothing is signalled here.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from engine import process, resources
from engine.paths import Home
from engine.running import evidence
from store import jobs
from store.library import Database


@dataclass(frozen=True)
class Process:
    """A process: since when it runs (seconds of the epoch), and the bytes of main memory that it holds."""

    pid: int
    since: float
    memory: int


@dataclass(frozen=True)
class Worker:
    """A worker that lives, with the run that it works on; `on_card` is the card's memory that it holds, in bytes,
    where the driver tells."""

    process: Process
    job_id: str
    job: str
    device: str
    on_card: int | None = None


def supervisor(home: Home) -> Process | None:
    """Return the process that carries out the queue, where it runs."""
    identity = evidence.supervisor(home)
    return _process(identity.pid) if identity else None


def live(db: Database) -> list[Worker]:
    """Return the workers that live, longest first."""
    found = []
    cards: dict[int, int] | None = None
    for attempt in evidence.claims(db).values():
        identity = evidence.worker(attempt)
        seen = _process(identity.pid) if identity and process.is_alive(identity) else None
        if seen is None:
            continue
        if attempt.device.startswith("cuda") and cards is None:
            cards = _on_cards()
        name = jobs.name_of(db, attempt.job_id) or attempt.job_id[:8]
        found.append(Worker(seen, attempt.job_id, name, attempt.device, (cards or {}).get(seen.pid)))
    return found


def _process(pid: int) -> Process | None:
    try:
        seen = psutil.Process(pid)
        return Process(pid, seen.create_time(), int(seen.memory_info().rss))
    except psutil.Error:
        return None


def _on_cards() -> dict[int, int]:
    """Return what each process holds of all cards together; nothing of those whose driver does not tell."""
    held: dict[int, int] = {}
    for device in resources.devices():
        for holder in resources.holders(device, at_most=1000) if device.type == "cuda" else []:
            held[holder.pid] = held.get(holder.pid, 0) + holder.bytes
    return {pid: size for pid, size in held.items() if size}
