"""Who may still write about a job: the open attempt under the job's current fence, and nobody else.

The rule: what a worker says, and what its end causes, is written under its attempt's fence and changes no row once that
attempt is closed or the job was claimed again. A write transaction holds the only lock, so what holds here holds to its
end.
"""

from __future__ import annotations

from store.db import first_row
from store.library import Database

# Takes the job's id and the fence; for a WHERE clause.
HOLDS = (
    "EXISTS (SELECT 1 FROM jobs JOIN attempts ON attempts.job_id = jobs.id AND attempts.fence = jobs.fence "
    "WHERE jobs.id = ? AND jobs.fence = ? AND attempts.ended_at IS NULL)"
)


def holds(db: Database, job_id: str, fence: int | None) -> bool:
    """Say whether `fence` is the job's current one, with its attempt open; None asks nothing and holds always."""
    return fence is None or first_row(db, f"SELECT 1 WHERE {HOLDS}", [job_id, fence]) is not None
