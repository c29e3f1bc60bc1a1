"""Published directories: files, their sizes and hashes, and whether what lies there is still what was published.

Used by the worker, which publishes, and by the supervisor, which asks what there is to resume from.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import atomic

MANIFEST = "manifest.json"


class Damaged(Exception):
    """A published directory is not what its manifest says; `file` names what differs."""

    def __init__(self, directory: Path, file: str, why: str) -> None:
        super().__init__(f"{directory.name}/{file}: {why}")
        self.file = file


@dataclass(frozen=True)
class Manifest:
    """What a published directory holds, and facts about it that need no other file."""

    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _own_hash(files: Any, facts: Any) -> str:
    """Return the hash by which a manifest vouches for itself."""
    return hashlib.sha256(json.dumps([files, facts], sort_keys=True).encode()).hexdigest()


def seal(staged: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of every file below `staged`."""
    files = {
        str(path.relative_to(staged)): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(staged.rglob("*"))
        if path.is_file()
    }
    atomic.write_json(staged / MANIFEST, {"files": files, "facts": facts, "sha256": _own_hash(files, facts)})


def load(directory: Path) -> Manifest:
    """Read a manifest without looking at the files. Raises Damaged."""
    try:
        fields = json.loads((directory / MANIFEST).read_text())
        files, facts, own_hash = fields["files"], fields["facts"], fields["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(directory, MANIFEST, f"cannot be read ({error})") from None
    if own_hash != _own_hash(files, facts):
        raise Damaged(directory, MANIFEST, "does not match its hash")
    return Manifest(files, facts)


def verify(directory: Path) -> Manifest:
    """Read a manifest and check each file's size and hash. Raises Damaged, naming the first that differs."""
    manifest = load(directory)
    for name, wanted in manifest.files.items():
        _check(directory, name, wanted)
    return manifest


def _check(directory: Path, name: str, wanted: dict[str, Any]) -> None:
    path = directory / name
    try:
        if not path.is_file():
            raise Damaged(directory, name, "is missing")
        if path.stat().st_size != wanted["size"]:
            raise Damaged(directory, name, f"has {path.stat().st_size} bytes, not {wanted['size']}")
        if file_sha256(path) != wanted["sha256"]:
            raise Damaged(directory, name, "does not match its hash")
    except OSError as error:
        raise Damaged(directory, name, f"cannot be read ({error.strerror})") from None
