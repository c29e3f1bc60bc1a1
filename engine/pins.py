"""Pins: a checkpoint that its user wants to keep holds a marker file, which no retention removes.

The rule: the marker alone decides. It lies beside the sealed files and not in their manifest, so that the service
can set it while a worker goes on; the store's column only shows it.
"""

from __future__ import annotations

from pathlib import Path

from engine import atomic

MARKER = "pinned"


def pin(directory: Path) -> None:
    """Mark a checkpoint as one to keep. Raises FileNotFoundError when it is gone, else OSError."""
    # Under a name that a removal has taken away the marker cannot appear: it is there in time, or this fails.
    atomic.write_bytes(directory / MARKER, b"")


def unpin(directory: Path) -> None:
    """Take the mark away; a checkpoint without one, or one that is gone, is fine. Raises OSError."""
    atomic.step((directory / MARKER).unlink, missing_ok=True)


def is_pinned(directory: Path) -> bool:
    """Say whether a checkpoint is marked as one to keep."""
    return (directory / MARKER).exists()
