"""Pins: a checkpoint that its user wants to keep, or that another job is to start from, holds a marker file, which no
retention removes.

The rule: the markers alone decide. They lie beside the sealed files and not in their manifest, so that the service
can set them while a worker goes on; the store's column only shows the user's.
"""

from __future__ import annotations

from pathlib import Path

from engine import atomic

MARKER = "pinned"  # the user's own
FOR_JOB = "needed-by-"  # and the id of the job that starts from it


def _marker(for_job: str | None) -> str:
    return MARKER if for_job is None else FOR_JOB + for_job


def pin(directory: Path, *, for_job: str | None = None) -> None:
    """Mark a checkpoint as one to keep, for its user or for a job. Raises FileNotFoundError when it is gone, else
    OSError."""
    # Under a name that a removal has taken away the marker cannot appear: it is there in time, or this fails.
    atomic.write_bytes(directory / _marker(for_job), b"")


def unpin(directory: Path, *, for_job: str | None = None) -> None:
    """Take that mark away; a checkpoint without it, or one that is gone, is fine. Raises OSError."""
    atomic.step((directory / _marker(for_job)).unlink, missing_ok=True)


def is_pinned_by_user(directory: Path) -> bool:
    """Say whether a checkpoint is one that its user wants to keep."""
    return (directory / MARKER).exists()


def is_pinned(directory: Path) -> bool:
    """Say whether a checkpoint is marked as one to keep, by anyone."""
    return is_pinned_by_user(directory) or next(directory.glob(f"{FOR_JOB}*"), None) is not None
