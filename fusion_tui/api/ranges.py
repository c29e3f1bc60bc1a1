"""Answers that are files, whole or from a place on: Range, If-Range, ETag, Content-Length.

The rule: one content has one tag; a part is only given of what the tag names, so that a download that goes on later
can never be put together from two contents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import quote

from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from starlette.datastructures import Headers

_ONE_RANGE = re.compile(r"bytes=\s*(?:(\d{1,18})\s*-\s*(\d{1,18})?|-\s*(\d{1,18}))\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Content:
    """Bytes that can be read from any place on, in pieces; `tag` is another for every other content.

    `pieces` gives those from the byte it is told on, at least; `modified` is in seconds since 1970.
    """

    size: int
    tag: str
    name: str
    modified: float
    pieces: Callable[[int], Iterator[bytes]]
    media_type: str = "application/octet-stream"


def part_asked_for(headers: Headers, content: Content) -> tuple[int, int] | None:
    """Return the part (first byte, byte after the last) that a request asks for; None for the whole.

    Several ranges at once, other units and nonsense are answered with the whole, as RFC 9110 (14.2) allows; so is a
    part where If-Range names another content, or a date, of which two contents can have the same. Raises HTTPException
    416 where nothing of the part is there.
    """
    match = _ONE_RANGE.fullmatch(headers.get("range", ""))
    if match is None or headers.get("if-range") not in (None, _etag(content)):
        return None
    first, last, suffix = (int(number) if number else None for number in match.groups())
    if first is not None and last is not None and last < first:
        return None
    start = first if first is not None else max(content.size - (suffix or 0), 0)
    end = content.size if last is None else min(last + 1, content.size)
    if start >= content.size or suffix == 0:
        detail = f"There are {content.size} bytes; the range begins beyond them."
        raise HTTPException(416, detail, {"Content-Range": f"bytes */{content.size}"})
    return start, end


def answer(headers: Headers, content: Content) -> StreamingResponse:
    """Return the answer to a request for `content`, or for a part of it."""
    part = part_asked_for(headers, content)
    start, end = part or (0, content.size)
    told = {
        "Content-Length": str(end - start),
        "Accept-Ranges": "bytes",
        "ETag": _etag(content),
        "Last-Modified": formatdate(content.modified, usegmt=True),
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(content.name, safe='')}",
    }
    if part:
        told["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    pieces = _between(content.pieces(start), end - start)
    return StreamingResponse(pieces, 206 if part else 200, headers=told, media_type=content.media_type)


def _between(pieces: Iterator[bytes], length: int) -> Iterator[bytes]:
    """Yield `length` bytes and no more."""
    left = length
    for piece in pieces:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return


def _etag(content: Content) -> str:
    return f'"{content.tag}"'
