"""A job's log as it is written, as server-sent events.

The rule: an event is one line as `/logs` shows it, under its number; who comes back with the last number goes on behind
it. The last event is `end`, with the job's status.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from fusion_tui.api import following
from fusion_tui.api.felix import records
from fusion_tui.api.felix.statuses import OF_STATE
from fusion_tui.api.following import Place

EVENT_STREAM = "text/event-stream"


def is_asked(request: Request, stream: bool | None) -> bool:
    """Say whether a request wants the live stream: by its query, else by what it accepts."""
    if stream is not None:
        return stream
    return any(part.split(";")[0].strip() == EVENT_STREAM for part in request.headers.get("accept", "").split(","))


def response(request: Request, job_id: str, *, after: int) -> EventSourceResponse:
    """Return the stream of a job's log, beginning with the line after a number."""
    return EventSourceResponse(_events(request, job_id, after), headers={"X-Accel-Buffering": "no"})


async def _events(request: Request, job_id: str, after: int) -> AsyncIterator[bytes]:
    async for news in following.follow(request, job_id, Place(line=after), points=False):
        for line in news.lines:
            yield format_sse_event(data_str=records.log_line(job_id, line).model_dump_json(), id=str(line.seq))
        if news.last:
            ended = {"job_id": job_id, "status": OF_STATE[news.job.state]}
            yield format_sse_event(event="end", data_str=json.dumps(ended))
        elif not news.lines:
            yield KEEPALIVE_COMMENT
