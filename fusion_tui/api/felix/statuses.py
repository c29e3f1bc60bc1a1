"""Dialect B's words for the states of a job.

The rule: one table, read in both directions; every state of the store has its word.
"""

from __future__ import annotations

from typing import Literal

from engine.service import states

Status = Literal["requested", "running", "complete", "deployed", "failed", "cancelled"]
Normalized = Literal["requested", "running", "complete", "failed", "cancelled"]

OF_STATE: dict[str, Normalized] = {
    states.QUEUED: "requested",
    states.PROVISIONING: "requested",
    states.PREEMPTED: "requested",
    states.STAGING: "running",
    states.RUNNING: "running",
    states.CHECKPOINTING: "running",
    states.UPLOADING: "running",
    states.COMPLETED: "complete",
    states.FAILED: "failed",
    states.CANCELLED: "cancelled",
}


def states_of(status: Status) -> tuple[str, ...]:
    """Return the states of the store that a word means; none for one that no job can have in this version."""
    return tuple(state for state, word in OF_STATE.items() if word == status)
