"""The files of a model that a job made, as they may be given out.

The rule: a file is given out only where it lies below the model's own folder with no link on the way, and whoever
opens it gets what was looked at.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from store import NotFound
from store.catalog import Model

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True)
class ModelFile:
    """A file below a model's folder: its relative name with slashes, its bytes, when it was last written."""

    rel: str
    size: int
    modified_ns: int


def files_of(model: Model) -> list[ModelFile]:
    """Return a model's files by name; links, hidden files and what is no file are left out. Raises NotFound."""
    root = Path(model.path)
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if _is_plain(name)]
        for name in filter(_is_plain, files):
            path = Path(folder) / name
            seen = path.lstat()
            if stat.S_ISREG(seen.st_mode):
                found.append(ModelFile(path.relative_to(root).as_posix(), seen.st_size, seen.st_mtime_ns))
    if not found:
        raise NotFound(f"The files of the model {model.name} are gone from {root}.")
    return sorted(found, key=lambda file: file.rel)


def _is_plain(name: str) -> bool:
    """Say whether a name is one that is given out: none of a hidden file, of a way up, or that is no text."""
    return bool(name) and name.isprintable() and not name.startswith(".")


def open_file(model: Model, rel: str) -> BinaryIO:
    """Open one of a model's files, unbuffered. Raises NotFound for anything that `files_of` does not tell of."""
    root, parts = Path(model.path), tuple(rel.split("/"))
    if not all(map(_is_plain, parts)) or not root.joinpath(rel).resolve().is_relative_to(root.resolve()):
        raise NotFound(f"The model {model.name} has no such file.")
    try:
        return _open_below(root, parts)
    except OSError:
        raise NotFound(f"The model {model.name} has no file {rel}.") from None


def _open_below(root: Path, parts: tuple[str, ...]) -> BinaryIO:
    """Open a regular file by its names below `root`, each looked up in the folder that was opened before."""
    folder = os.open(root, _FLAGS | os.O_DIRECTORY)
    try:
        for name in parts[:-1]:
            below = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = below
        descriptor = os.open(parts[-1], _FLAGS | os.O_NONBLOCK, dir_fd=folder)  # a pipe must not keep us waiting
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError
    return os.fdopen(descriptor, "rb", buffering=0)
