"""Writing files so that a crash leaves the old content or the new, never a part.

The rule: every rename and fsync in the project happens here, and every call that changes a file passes `step`.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def step(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Make one call that changes files: the seam at which the crash tests fail or die at call N, for every N."""
    return call(*arguments, **options)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`: os.write may take less than it was given."""
    view = memoryview(data)
    while view:
        view = view[step(os.write, descriptor, view) :]


def sync(descriptor: int) -> None:
    """Flush a file's content to the disk."""
    step(os.fsync, descriptor)


def sync_path(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        step(os.fsync, descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`, durably."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    descriptor = step(os.open, staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        write_all(descriptor, data)
        sync(descriptor)
        os.close(descriptor)
        descriptor = -1
        step(os.rename, staged, path)
    except BaseException:
        if descriptor >= 0:
            os.close(descriptor)
        staged.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, durably."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def publish(staged: Path, final: Path) -> None:
    """Make the directory `staged` appear at `final`, whole: sync its files, then rename it.

    Raises OSError when `final` exists and is not empty.
    """
    for folder, _, names in os.walk(staged, topdown=False):
        for name in names:
            sync_path(Path(folder) / name)
        sync_path(Path(folder))
    step(os.rename, staged, final)
    sync_path(final.parent)


def set_aside(path: Path, suffix: str) -> Path:
    """Rename `path` so that nobody takes it for good; return its new place."""
    target = path.with_name(path.name + suffix)
    if target.exists():
        step(shutil.rmtree, target)
    step(os.rename, path, target)
    sync_path(path.parent)
    return target


def sweep(folder: Path) -> None:
    """Finish removals below `folder` that a crash cut short."""
    for doomed in folder.glob(".removed-*"):
        step(shutil.rmtree, doomed, ignore_errors=True)


def remove_tree(path: Path) -> None:
    """Remove a directory so that a crash leaves no half of it under its own name."""
    doomed = path.with_name(f".removed-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        step(os.rename, path, doomed)
    except FileNotFoundError:
        return
    step(shutil.rmtree, doomed, ignore_errors=True)
