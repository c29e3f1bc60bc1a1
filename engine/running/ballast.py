"""A file that is there to be given up: when the disk is full, its room lets the last states be written down.

The rule: made only where there is plenty of room, of bytes that no file system can shrink, and given up only once
nothing else can be written.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from engine import atomic

BALLAST_BYTES = 1024 * 1024
PLENTY = 8 * BALLAST_BYTES

log = logging.getLogger("fusion.ballast")


class Ballast:
    """The ballast file at one path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, free: int) -> None:
        """Make the file where it is missing and `free` bytes of the disk are plenty."""
        if free < PLENTY or self._path.exists():
            return
        try:
            atomic.write_bytes(self._path, os.urandom(BALLAST_BYTES))
        except OSError as error:
            log.warning("No ballast could be laid up in %s: %s", self._path, error)

    def give_up(self) -> bool:
        """Free the file's room; return whether there was any to free."""
        try:
            atomic.step(self._path.unlink)
        except OSError:
            return False
        log.warning("The disk is full: the ballast %s is given up so that the last states can be written.", self._path)
        return True
