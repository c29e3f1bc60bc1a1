"""Which jobs a listing means, and what is asked of many of them without reading each whole.

The rule: a listing and its count are made of the same conditions.
"""

from __future__ import annotations

from collections.abc import Sequence

from store import states as known
from store.db import first_row, tuples
from store.library import Database


def where(states: Sequence[str], project_id: str | None) -> tuple[str, list[str]]:
    """Return the condition, and its values, of jobs in any of these states and of a project, where these are given."""
    conditions = [f"state IN ({', '.join('?' * len(states))})"] if states else []
    conditions += ["project_id = ?"] if project_id is not None else []
    values = [*states, *([] if project_id is None else [project_id])]
    return (f"WHERE {' AND '.join(conditions)}" if conditions else ""), values


def total(db: Database, *, states: Sequence[str] = (), project_id: str | None = None) -> int:
    """Return the number of jobs that `jobs.newest` would return without a limit."""
    condition, values = where(states, project_id)
    row = first_row(db, f"SELECT count(*) AS n FROM jobs {condition}", values)  # noqa: S608
    return int(row["n"]) if row else 0


def outputs(db: Database) -> list[tuple[str, str, str]]:
    """Return the id and name of each unfinished job, and the name of the model that it makes."""
    condition, values = where(known.UNFINISHED, None)
    sql = f"SELECT id, name, coalesce(json_extract(hyperparams, '$.output_name'), '') FROM jobs {condition}"  # noqa: S608
    return [(job_id, name, output) for job_id, name, output in tuples(db, sql, values)]
