"""`GET /jobs/{id}/stream`: what happens to a job, as server-sent events, until it has finished.

The rule: each event's id says how far the stream has come, so that a client that comes back with the last one misses
nothing and gets nothing twice.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import astuple, replace
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from engine.service import Thinned
from fusion_tui.api import errors, following, threads
from fusion_tui.api.access import LARGEST, READ, Engine, Id
from fusion_tui.api.answer import Answer
from fusion_tui.api.following import News, Place
from fusion_tui.api.fusion import answers
from fusion_tui.api.fusion.metrics import written_points

router = APIRouter(tags=["jobs"], responses=errors.documented(401, 403, 404, 421, 422, 503))

_ID = re.compile(r"(-1|[0-9]{1,18}):([0-9]{1,18}):([0-9]{1,18}):([0-9]{1,18}\.[0-9]{1,9})", re.ASCII)


def _id_of(place: Place) -> str:
    return ":".join(map(repr, astuple(place)))


def _place_of(id: str) -> Place:
    """Return the place that an event's id tells. Raises RequestValidationError for what is no such id."""
    known = _ID.fullmatch(id)
    if not known:
        fault = {"loc": ("header", "last-event-id"), "msg": "Not the id of an event of this stream", "type": "value"}
        raise RequestValidationError([fault])
    step, line, event = map(int, known.groups()[:3])
    return Place(step, line, event, float(known[4]))


async def _start(
    service: Engine,
    job_id: Id,
    since_step: Annotated[int | None, Query(ge=-1, le=LARGEST, description="Send the points after this step.")] = None,
    since: Annotated[int | None, Query(ge=0, le=LARGEST, description="Send the log lines after this number.")] = None,
    last_event_id: Annotated[str | None, Header(description="The id of the last event that was received.")] = None,
) -> Place:
    """Return where a stream begins, or say what is wrong while there is no stream yet."""
    place = await run_in_threadpool(following.newest, service, job_id)
    if last_event_id:
        return _place_of(last_event_id)
    place = place if since_step is None else replace(place, step=since_step, aside=0.0)
    return place if since is None else replace(place, line=since)


def _event(name: str, answer: Answer, place: Place) -> ServerSentEvent:
    return _written(name, answer.model_dump_json(exclude_unset=True), place)


def _written(name: str, data: str, place: Place) -> ServerSentEvent:
    return ServerSentEvent(event=name, raw_data=data, id=_id_of(place))


def _events(job_id: str, news: News, before: Place) -> list[ServerSentEvent]:
    """Return what is to be sent. Each has an id of its own: the place when it and those before it were received."""
    place, sent = before, []
    for event in news.events:
        place = following.beyond(place, event)
        if event.kind == "state":
            entry = answers.Event.model_validate(vars(event))
            sent.append(_event("state", entry, place))
    if news.lines:
        place = replace(place, line=news.place.line)
        logs = answers.Logs.of(job_id, news.lines, place.line)
        sent.append(_event("log", logs, place))
    if news.points:
        metrics = written_points(job_id, Thinned(tuple(news.points), news.place.step))
        sent.append(_written("metrics", metrics.decode(), news.place))
    if news.last:
        sent.append(_event("end", answers.Job.of(news.job), news.place))
    return sent


@router.get(
    "/jobs/{id}/stream",
    dependencies=READ,
    response_class=EventSourceResponse,
    responses={200: {"description": "Events `metrics`, `log` and `state`; `end` is the last one."}},
)
async def stream_job(
    request: Request, job_id: Id, place: Annotated[Place, Depends(_start)]
) -> AsyncIterator[ServerSentEvent]:
    """Send what happens to a job as it happens, until it has finished: server-sent events.

    `metrics` and `log` hold what `/metrics` and `/logs` would answer, `state` is a change of state as in `/events`, and
    `end` holds the job. Without `since_step` and `since`, only what is new from now on comes; the header
    `Last-Event-ID`, which browsers send when they reconnect, goes on behind that event. After a resume, the steps since
    then come again. A long curve comes in events of about two thousand points. A comment comes every 15 s when nothing
    else does.
    """
    async for news in following.follow(request, job_id, place):
        for event in await threads.run(request, threads.STREAMS, _events, job_id, news, place):
            yield event
        place = news.place
