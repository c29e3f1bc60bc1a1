"""The states of a job and the legal ways between them.

The rule: a job's state changes only through `store.jobs.transition`, which refuses what is not in this table.
"Stop requested" is a flag on the job, not a state.
"""

from __future__ import annotations

QUEUED = "queued"
PROVISIONING = "provisioning"
STAGING = "staging"
RUNNING = "running"
CHECKPOINTING = "checkpointing"
UPLOADING = "uploading"
PREEMPTED = "preempted"
COMPLETED = "completed"
FAILED = "failed"
CANCELLED = "cancelled"

_LOST = frozenset({PREEMPTED, FAILED, CANCELLED})

TRANSITIONS: dict[str, frozenset[str]] = {
    QUEUED: frozenset({PROVISIONING, FAILED, CANCELLED}),
    PROVISIONING: frozenset({STAGING}) | _LOST,
    STAGING: frozenset({RUNNING}) | _LOST,
    RUNNING: frozenset({CHECKPOINTING, UPLOADING}) | _LOST,
    CHECKPOINTING: frozenset({RUNNING, UPLOADING}) | _LOST,
    UPLOADING: frozenset({COMPLETED}) | _LOST,
    PREEMPTED: frozenset({QUEUED, FAILED, CANCELLED}),
    # A user's retry is the only way out of these two; a completed job stays as it is.
    FAILED: frozenset({QUEUED}),
    CANCELLED: frozenset({QUEUED}),
    COMPLETED: frozenset(),
}

ALL = tuple(TRANSITIONS)
FINISHED = frozenset({COMPLETED, FAILED, CANCELLED})
UNFINISHED = tuple(state for state in ALL if state not in FINISHED)
ACTIVE = frozenset({PROVISIONING, STAGING, RUNNING, CHECKPOINTING, UPLOADING})
