"""What of a job its user may change at any time: its name, its tags, its notes.

The rule: the limits are those of a submit; nothing that a worker reads can be changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import Fault, InvalidRequest
from store import Store, jobs
from store.jobs import Job


class JobEdit(BaseModel):
    """What to change; what is left out stays as it is."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"name": "sums-2", "tags": ["nightly"], "notes": "twice the rows"}]},
    )

    name: str = Field("", min_length=1, max_length=100)
    tags: list[str] = Field(default_factory=list, max_length=32)
    notes: str = Field("", max_length=10_000)


def parse(changes: Mapping[str, Any]) -> JobEdit:
    """Validate what to change. Raises InvalidRequest with every fault found."""
    try:
        return JobEdit.model_validate(dict(changes))
    except ValidationError as error:
        raise InvalidRequest([_fault(dict(item)) for item in error.errors()]) from None


def _fault(error: Mapping[str, Any]) -> Fault:
    loc, message = tuple(error["loc"]), str(error["msg"])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(loc[0]), list(JobEdit.model_fields), n=1)
        nearest = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(JobEdit.model_fields)}"
        message = f"unknown field, or one that cannot be changed; {nearest}"
    return Fault(loc, message[:1].lower() + message[1:], error["type"])


def edit(store: Store, job_id: str, changes: Mapping[str, Any], *, now: float) -> Job:
    """Change a job's name, tags or notes; see `Service.edit`."""
    wanted = parse(changes)
    values = {field: getattr(wanted, field) for field in wanted.model_fields_set}
    with store.write() as db:
        job = jobs.get(db, job_id)
        changed = {field: value for field, value in values.items() if value != getattr(job, field)}
        if not changed:
            return job
        jobs.add_event(db, job_id, "edited", {"fields": sorted(changed)}, now=now)
        jobs.edit(db, job_id, changed)
        return jobs.get(db, job_id)
