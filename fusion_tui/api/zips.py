"""A model as one zip, made while it is sent: not compressed, so that its size is known before its first byte.

The rule: the same model gives the same bytes every time, so that a download that broke off can go on. Going on at a
byte means making the archive from its start and sending nothing before that byte: the disk is read, the memory is not
filled, and no copy of the model lies about.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from zipstream import ZIP_STORED, ZipStream

from engine.service import Model
from engine.transfer import downloads
from fusion_tui.api.ranges import Content

PIECE = 256 * 1024  # bytes sent at once
SILENCE = 16 * 1024 * 1024  # bytes left out between two moments at which a client that has gone is noticed


def zip_of(model: Model) -> ZipStream:
    """Return the archive of a model's files, of a known size, `len()`; its times are the files'. Raises NotFound."""
    archive = ZipStream(compress_type=ZIP_STORED, sized=True)
    for file in downloads.files_of(model):
        archive.add_path(str(Path(model.path) / file.rel), file.rel)
    return archive


def content_of(model: Model) -> Content:
    """Return the archive as something that can be sent from any byte on. Raises NotFound."""
    files = downloads.files_of(model)
    seen = [(file.rel, file.size, time.localtime(file.modified_ns // 10**9)[:6]) for file in files]
    tag = hashlib.sha256(repr((version("zipstream-ng"), seen)).encode()).hexdigest()[:32]
    return Content(
        size=len(zip_of(model)),
        tag=tag,
        name=f"{model.name}-weights.zip",
        modified=max(file.modified_ns for file in files) / 10**9,
        pieces=lambda start: _from(zip_of(model), start),
        media_type="application/zip",
    )


def _from(archive: ZipStream, start: int) -> Iterator[bytes]:
    """Yield an archive's bytes from the byte `start` on, in pieces of some size; empty ones while it leaves out."""
    left_out, silent = start, 0
    gathered = bytearray()
    for made in archive:
        kept = made[left_out:]
        left_out -= len(made) - len(kept)
        silent += len(made) - len(kept)
        gathered += kept
        if len(gathered) >= PIECE or silent >= SILENCE:
            yield bytes(gathered)
            gathered.clear()
            silent = 0
    yield bytes(gathered)
