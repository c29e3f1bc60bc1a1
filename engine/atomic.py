"""Writing files so that a crash leaves the old content or the new, never a part.

The rule: every rename and fsync in the project happens here, and every call that changes a file passes `step`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import DiskFailed, NoSpace

T = TypeVar("T")

# No room, or none left for this user.
FULL = (errno.ENOSPC, errno.EDQUOT)


def step(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Make one call that changes files: the seam at which the crash tests fail or die at call N, for every N."""
    return call(*arguments, **options)


def disk_errno(error: BaseException) -> int | None:
    """Return the system's error number behind an error, or None; libraries in Rust tell of it in words alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def is_full(error: BaseException) -> bool:
    """Say whether an error means that the disk has no room."""
    return isinstance(error, NoSpace) or disk_errno(error) in FULL


@contextmanager
def telling(what: str, where: Path) -> Iterator[None]:
    """Tell of the system's errors as what failed, and where. Raises NoSpace on a full disk, else DiskFailed."""
    try:
        yield
    except Exception as error:
        number = disk_errno(error)
        if number is None:
            raise
        if number in FULL:
            raise NoSpace(f"The disk is full: {what} failed in {where}. Free some space.") from error
        name = getattr(error, "filename", None) or where
        raise DiskFailed(
            f"{what[:1].upper()}{what[1:]} failed ({name}: {os.strerror(number)}). "
            "Check the disk and its mount, then retry; what was saved before is kept."
        ) from error


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


def make_folder(path: Path) -> None:
    """Make a private directory, durably, in one that is there; one that is there already is fine."""
    try:
        step(path.mkdir, mode=0o700)
    except FileExistsError:
        return
    sync_path(path.parent)


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
        discard(staged)
        raise
    sync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, durably."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def publish(staged: Path, final: Path, *, replace: bool = False) -> None:
    """Make the directory `staged` appear at `final`, whole: sync its files, then rename it.

    With `replace`, what lies at `final` goes, and no sooner than the new one needs nothing but its name; where it
    cannot have that, the old one is put back. Raises OSError, also when `final` is not empty and not to be replaced.
    """
    for folder, _, names in os.walk(staged, topdown=False):
        for name in names:
            sync_path(Path(folder) / name)
        sync_path(Path(folder))
    replaced = _without_name(final)
    if replace and final.exists():
        step(os.rename, final, replaced)
    try:
        step(os.rename, staged, final)
    except BaseException:
        if replaced.exists():
            with suppress(OSError):  # the error that led here is the one to tell
                step(os.rename, replaced, final)
        raise
    sync_path(final.parent)
    discard(replaced)


def set_aside(path: Path, suffix: str) -> Path:
    """Rename `path` so that nobody takes it for good; return its new place."""
    target = path.with_name(path.name + suffix)
    if target.exists():
        step(shutil.rmtree, target)
    step(os.rename, path, target)
    sync_path(path.parent)
    return target


def discard(path: Path) -> None:
    """Remove what is half done, as far as that goes: an error here would hide the one that led here."""
    with suppress(OSError):
        if path.is_dir():
            step(shutil.rmtree, path, ignore_errors=True)
        elif path.exists():
            step(path.unlink)


def _without_name(path: Path) -> Path:
    """Return where a directory goes that is to be removed; `sweep` finds it there."""
    return path.with_name(f".removed-{path.name}-{uuid.uuid4().hex[:8]}")


def _name_before(doomed: Path) -> str:
    return doomed.name.removeprefix(".removed-").rpartition("-")[0]


def sweep(folder: Path, *, unless: Callable[[Path], bool] | None = None) -> None:
    """Finish removals below `folder` that a crash cut short; those are put back of which `unless` says yes."""
    for doomed in folder.glob(".removed-*"):
        if unless and unless(doomed):
            # Where that fails, or the name is taken, it stays as it is: nothing of it is lost.
            with suppress(OSError):
                step(os.rename, doomed, doomed.with_name(_name_before(doomed)))
        else:
            discard(doomed)


def remove_tree(path: Path, *, unless: Callable[[Path], bool] | None = None) -> bool:
    """Remove a directory so that a crash leaves no half of it under its own name; say whether it is gone.

    `unless` is asked of the directory when it has no name any more by which others could change it; where it says
    yes, the directory is put back; `sweep` with the same question does so where a crash came between.
    """
    doomed = _without_name(path)
    try:
        step(os.rename, path, doomed)
    except FileNotFoundError:
        return True
    if unless and unless(doomed):
        step(os.rename, doomed, path)
        return False
    discard(doomed)
    return True
