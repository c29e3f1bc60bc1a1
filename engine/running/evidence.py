"""Whether what the store says of a run is true of this machine: does its worker's process run, and who would notice?

The rule: a run counts as worked on only while the very process of its open attempt is there. Nothing is changed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from engine import process
from engine.paths import Home
from engine.process import Identity
from store import attempts, states
from store.attempts import Attempt
from store.jobs import Job
from store.library import Database

Evidence: TypeAlias = Literal["alive", "starting", "gone", "lost"]

WORDS: Mapping[Evidence, str] = {
    "alive": "its worker runs",
    "starting": "its worker is being started",
    "gone": "its worker's process is gone; the supervisor has yet to say what follows",
    "lost": "its worker's process is gone, and no supervisor is there to go on with it",
}


def supervisor(home: Home) -> Identity | None:
    """Return the process that carries out the queue of this data folder, where it runs."""
    try:
        fields = json.loads(home.supervisor_info.read_text())
        identity = Identity(fields["boot_id"], fields["pid"], fields["start_ticks"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return identity if process.is_alive(identity) else None


def worker(attempt: Attempt) -> Identity | None:
    """Return the identity of an attempt's worker, or None before it was committed."""
    if attempt.pid is None or attempt.start_ticks is None:
        return None
    return Identity(attempt.boot_id or "", attempt.pid, attempt.start_ticks)


def claims(db: Database) -> dict[str, Attempt]:
    """Return the open attempt of each job that has one."""
    return {attempt.job_id: attempt for attempt in attempts.open_attempts(db)}


def of(job: Job, claim: Attempt | None, *, supervised: bool) -> Evidence | None:
    """Return what speaks for a job that the store calls worked on; None where it calls it nothing of the kind.

    `claim` is the job's open attempt. One that has no worker yet is about to get one, if anybody is there to start it.
    """
    if job.state not in states.ACTIVE:
        return None
    identity = worker(claim) if claim else None
    if identity is None:
        return "starting" if supervised else "lost"
    if process.is_alive(identity):
        return "alive"
    return "gone" if supervised else "lost"


def of_jobs(db: Database, home: Home, jobs: Iterable[Job]) -> dict[str, Evidence]:
    """Return the evidence of each job that the store calls worked on."""
    supervised, open_now = supervisor(home) is not None, claims(db)
    found = ((job.id, of(job, open_now.get(job.id), supervised=supervised)) for job in jobs)
    return {job_id: evidence for job_id, evidence in found if evidence}
