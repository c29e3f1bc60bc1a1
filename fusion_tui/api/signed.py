"""What is below /signed: files that come in and go out under addresses that carry their own permission.

The rule: the guard has checked the address before anything here runs, so a route may do what its address says and
nothing that its address does not say. An address is told to its client and to nobody else: no log has it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO

import anyio
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from engine.errors import UnknownReference
from engine.service import Model, Service
from engine.transfer import downloads
from fusion_tui.api import ranges, zips
from fusion_tui.api.access import Engine, as_uuid
from fusion_tui.api.answer import Answer
from store.errors import NotFound

PIECE = 1024 * 1024  # bytes written at once
SENT_AT_ONCE = 256 * 1024

router = APIRouter(prefix="/signed", include_in_schema=False)


class Received(Answer):
    """What came of a PUT."""

    upload_id: str
    bytes: int
    status: str


def address(request: Request, method: str, path: str) -> str:
    """Return the signed address of `path` (not quoted) for `method`, at the host by which this request came."""
    service: Service = request.app.state.service
    # Of a proxy that speaks TLS. Who makes it up gets an address that does not work.
    scheme = "https" if request.headers.get("x-forwarded-proto") == "https" else request.url.scheme
    return f"{scheme}://{request.headers['host']}{service.signer.sign(method, path)}"


def upload_path(upload_id: str) -> str:
    """Return where the file of an upload is sent to."""
    return f"/signed/uploads/{upload_id}"


def weights_path(job_id: str) -> str:
    """Return where the model of a job is had as one zip."""
    return f"/signed/jobs/{job_id}/weights.zip"


def file_path(model: Model, rel: str) -> str:
    """Return where one file of a model is had."""
    return f"/signed/models/{model.id}/{rel}"


def trained_model(service: Service, model_id: str) -> Model:
    """Return the model with exactly this id that a job made. Raises NotFound."""
    try:
        entry = service.model(model_id)
    except UnknownReference as error:
        raise NotFound(str(error)) from None
    if not isinstance(entry, Model) or entry.id != model_id:
        raise NotFound(f"No job made a model with the id {model_id}.")
    return entry


@router.put("/uploads/{upload_id}")
async def receive(request: Request, service: Engine, upload_id: str) -> Received:
    """Take a file: piece by piece to the disk, and there whole or not at all."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "Send the file as it is, without a content encoding.")
    length = request.headers.get("content-length")
    upload_id = as_uuid(upload_id)
    reception = await run_in_threadpool(service.uploads.receive, upload_id, int(length) if length else None)
    try:
        async for piece in _gathered(request):
            await run_in_threadpool(reception.write, piece)
        await run_in_threadpool(reception.finish)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(reception.abort)
        raise
    upload = await run_in_threadpool(service.uploads.get, upload_id)
    return Received(upload_id=upload.id, bytes=upload.bytes, status=upload.state)


async def _gathered(request: Request) -> AsyncIterator[bytes]:
    """Yield a request's body in pieces that are worth a write each."""
    gathered = bytearray()
    async for piece in request.stream():
        gathered += piece
        if len(gathered) >= PIECE:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


@router.get("/models/{model_id}/{rel:path}")
def model_file(request: Request, service: Engine, model_id: str, rel: str) -> StreamingResponse:
    """Send one file of a model."""
    model = trained_model(service, as_uuid(model_id))
    file = downloads.open_file(model, rel)
    seen = os.fstat(file.fileno())  # of what was opened, not of what is there by now
    content = ranges.Content(
        size=seen.st_size,
        tag=f"{seen.st_mtime_ns:x}-{seen.st_size:x}-{seen.st_ino:x}",
        name=rel.rpartition("/")[2],
        modified=seen.st_mtime,
        pieces=lambda start: _pieces(file, start),
    )
    return ranges.answer(request.headers, content)


def _pieces(file: BinaryIO, start: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while piece := file.read(SENT_AT_ONCE):
            yield piece


@router.get("/jobs/{job_id}/weights.zip")
def weights(request: Request, service: Engine, job_id: str) -> StreamingResponse:
    """Send the model that a job made, as one zip."""
    job = service.job(as_uuid(job_id))
    if job.output_model_id is None:
        raise NotFound(f"The job {job.name} is {job.state} and has made no model.")
    return ranges.answer(request.headers, zips.content_of(trained_model(service, job.output_model_id)))
