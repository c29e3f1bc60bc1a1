"""What things take on disk, as their files say it.

The rule: nothing here is remembered. Counting a folder of a million files takes seconds, so callers do it in a thread
and may give up at any moment.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.order import CHECKPOINTS
from engine.paths import Home

CHECKPOINT_FILES = "checkpoints"  # the part of the runs' folders that holds these
OTHER = "store and other"
ALWAYS = (CHECKPOINT_FILES, "runs", "models", "datasets")  # told of, though they may take nothing
Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Disk:
    """The data folder's disk and what the folder takes of it, in bytes. `parts` are checkpoints, runs (all else of
    their folders), models, datasets, cache, uploads, requests, store and other; `whole`: all was counted."""

    free: int
    total: int
    parts: dict[str, int]
    whole: bool = False

    @property
    def used(self) -> int:
        """What the data folder takes."""
        return sum(self.parts.values())


def never() -> bool:
    """Do not stop."""
    return False


def of_folder(folder: Path, stopped: Stopped = never) -> int:
    """Return the bytes of a folder's files; one that two names lead to counts once. What vanishes meanwhile, or may
    not be read, counts as nothing. A link to a file counts as the file: so the hub's cache keeps its weights."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for entry in _files(folder, stopped):
        try:
            status = entry.stat()
        except OSError:
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            total += status.st_size
    return total


def of_home(home: Home, stopped: Stopped = never) -> Iterator[Disk]:
    """Count the data folder part by part, and yield what is known after each; the last one is whole unless `stopped`.

    A file with two names (a pinned checkpoint may have them) counts where it is met first.
    """
    parts = dict.fromkeys(ALWAYS, 0)
    seen: set[tuple[int, int]] = set()
    for top in _tops(home.root):
        for entry in _files(top, stopped) if top.is_dir() else _alone(top):
            part = _part(entry.path, top)
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                parts[part] = parts.get(part, 0) + status.st_size
        if stopped():
            return
        yield _disk(home, dict(parts))
    yield _disk(home, parts, whole=True)


def _disk(home: Home, parts: dict[str, int], *, whole: bool = False) -> Disk:
    usage = shutil.disk_usage(home.root)
    return Disk(usage.free, usage.total, parts, whole)


def _part(path: str, top: Path) -> str:
    if not top.is_dir():
        return OTHER
    return CHECKPOINT_FILES if top.name == "runs" and f"{os.sep}{CHECKPOINTS}{os.sep}" in path else top.name


def _tops(root: Path) -> list[Path]:
    return sorted(root.iterdir(), key=lambda path: path.name) if root.is_dir() else []


def _alone(path: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path.parent) as entries:
        yield from (entry for entry in entries if entry.name == path.name)


def _files(folder: Path, stopped: Stopped) -> Iterator[os.DirEntry[str]]:
    """Yield every file below `folder`, without going through links to folders."""
    waiting = [str(folder)]
    while waiting and not stopped():
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file():
                        yield entry
        except OSError:
            continue
