"""The gate before a start: whether a job fits the memory that is free at this moment, and who is in its way.

The rule: it only ever makes a job wait for others. What fits no device even when all of it is free is let through, for
no waiting helps it; submit has refused it already, unless a later measurement said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from engine import resources
from engine.plans import planning
from engine.resources import Device, size_text
from store.jobs import Job
from store.library import Database


class Gate:
    """One round's look; make another for the next."""

    def __init__(self, db: Database, devices: Sequence[Device]) -> None:
        self._db = db
        self._largest = max((device.memory_total for device in devices), default=0)
        self._holders = lru_cache(resources.holders)

    def admits(self, job: Job, device: Device) -> bool:
        """Say whether `job` may start on `device` now."""
        if not job.plan:
            return True
        needed = planning.needed_now(self._db, job.plan, device)
        return needed > self._largest or planning.fits_now(needed, device)

    def reason(self, job: Job, device: Device) -> str:
        """Return what a job that is not admitted waits for. Looks at every process, so not in each round."""
        assert job.plan is not None
        needed = planning.needed_now(self._db, job.plan, device)
        if needed > device.memory_total:
            return f"needs {size_text(needed)}, more than {device.label} has; waits for a larger device"
        holders = ", ".join(map(str, self._holders(device)))
        return (
            f"needs {size_text(needed)}, {size_text(device.memory_free)} of {size_text(device.memory_total)} "
            f"free on {device.label}; {f'held by {holders}' if holders else 'what holds the rest cannot be seen'}; "
            "the run starts when there is room"
        )
