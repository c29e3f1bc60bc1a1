"""How what went wrong becomes an answer: one table from exception to status, one body `{"detail": …}`.

The rule: no route and no guard writes an error body; they raise, and it is written here.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from engine.errors import (
    Conflict,
    DiskFailed,
    EngineError,
    InvalidData,
    InvalidRequest,
    NoSpace,
    NotAllowed,
    UnknownReference,
)
from store.errors import NotFound, StoreBusy, StoreError, StoreFull, StoreReadOnly, translate

_log = logging.getLogger(__name__)

# The first class that fits decides, so narrow ones stand before wide ones.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (InvalidRequest, 422),
    (UnknownReference, 400),
    (InvalidData, 400),
    (Conflict, 409),
    (NotAllowed, 403),
    (NoSpace, 503),
    (DiskFailed, 503),
    (EngineError, 400),
    (NotFound, 404),
    (StoreBusy, 503),
    (StoreFull, 503),
    (StoreReadOnly, 503),
    (StoreError, 500),
    (ClientDisconnect, 400),  # told to nobody: it keeps a client's leaving out of the log
)
RETRY_SOON = {"Retry-After": "1"}


class Problem(BaseModel):
    """Every error but 422."""

    detail: str


class FieldFault(BaseModel):
    """One field that does not fit: where it stands, `body` or `query` first; what is wrong; a word for programs."""

    loc: list[str | int]
    msg: str
    type: str


class InvalidFields(BaseModel):
    """A request whose fields do not fit, with every fault found."""

    detail: list[FieldFault] = Field(description="One entry for each fault.")


_MEANINGS = {
    400: "Malformed body, or a model or dataset that does not exist or cannot be used.",
    401: "The key is missing or wrong.",
    403: "The key lacks the scope, or the request comes from another site.",
    404: "Unknown id, or nothing there yet.",
    408: "The body took too long.",
    409: "The state of the thing, or an earlier request under this idempotency key, rules it out.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    421: "The Host header names another server.",
    422: "Fields that do not fit.",
    429: "Too many requests; Retry-After says when the next will be let through.",
    503: "The store is busy or cannot be written, there is no disk space, or too many wait already.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of these error statuses: JSON, whatever else a route answers."""
    entries: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        model = InvalidFields if status == 422 else Problem
        schema = {"$ref": f"#/components/schemas/{model.__name__}"}
        entries[status] = {"description": _MEANINGS[status], "content": {"application/json": {"schema": schema}}}
    return entries


def problem(status: int, detail: Any, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer with this status and `{"detail": detail}`."""
    return JSONResponse({"detail": detail}, status, headers=dict(headers or {}))


def answer(error: Exception, store_path: object = "") -> JSONResponse:
    """Return the answer to a request that raised `error`; what is not expected gives a 500 that tells nothing."""
    if isinstance(error, sqlite3.Error):
        error = translate(error, store_path)
    if isinstance(error, StarletteHTTPException):
        return problem(error.status_code, error.detail, error.headers)
    if isinstance(error, RequestValidationError):
        faults = [{"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in error.errors()]
        return problem(422, faults)
    if isinstance(error, InvalidRequest):
        return problem(422, [{"loc": ["body", *f.loc], "msg": f.message, "type": f.kind} for f in error.faults])
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return problem(503, "No disk space left for this request. Free some space; nothing was changed.")
    for kind, status in STATUS:
        if isinstance(error, kind):
            return problem(status, str(error), RETRY_SOON if kind is StoreBusy else None)
    return problem(500, "The server failed on this request; its log says why.")


async def _handle(request: Request, error: Exception) -> JSONResponse:
    response = answer(error, request.app.state.service.store.path)
    if response.status_code == 500 and isinstance(error, StoreError | sqlite3.Error):
        # Other surprises go on to the server, which logs them itself.
        _log.error("%s %r failed", request.method, request.url.path, exc_info=error)
    return response


def install(app: FastAPI) -> None:
    """Have `app` answer every exception from here. What gives a 500 also reaches the server's log."""
    ours = (EngineError, StoreError, sqlite3.Error)
    for kind in (StarletteHTTPException, HTTPException, RequestValidationError, ClientDisconnect, *ours):
        app.add_exception_handler(kind, _handle)
    app.add_exception_handler(Exception, _handle)
