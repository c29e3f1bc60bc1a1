"""Following a job while it runs: what is new of it, again and again until it has ended.

The rule: the job is read before its points and lines, so what a finished job had to say has been said when the
following ends. Both dialects' streams are made of this; each writes it in its own words.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from engine.service import OWN, Event, Job, LogLine, Point, Service
from fusion_tui.api.commits import Commits
from store.errors import NotFound, StoreBusy

HEARTBEAT_S = 15.0  # silence after which a stream says that it lives


@dataclass(frozen=True)
class Place:
    """How far a stream has come: the newest of the job's own steps, log line and event that it told of.

    `aside` is when the newest point was made that counts something else: before the first step, those come too.
    """

    step: int = -1
    line: int = 0
    event: int = 0
    aside: float = 0.0


@dataclass(frozen=True)
class News:
    """What happened to a job since a place; all empty: a sign of life."""

    job: Job
    place: Place
    points: list[Point] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def any(self) -> bool:
        """Whether there is any."""
        return bool(self.points or self.lines or self.events)


def since(service: Service, job_id: str, place: Place, *, points: bool = True) -> News:
    """Return what is newer than `place`; `points` says whether metrics are wanted. Raises NotFound, StoreBusy."""
    job = service.job(job_id)
    events = service.events(job_id, after=place.event)
    for event in events:
        place = beyond(place, event)
    found = service.points(job_id, since_step=place.step) if points else []
    counts = OWN if job.total_steps else {point.phase for point in found}  # a job without steps: all its points
    newer = [point for point in found if point.phase in counts or point.ts > place.aside]
    lines = service.logs(job_id, since=place.line)
    reached = replace(
        place,
        step=max((point.step for point in newer if point.phase in counts), default=place.step),
        line=lines[-1].seq if lines else place.line,
        aside=max((point.ts for point in newer if point.phase not in counts), default=place.aside),
    )
    return News(job, reached, newer, lines, events)


def beyond(place: Place, event: Event) -> Place:
    """Return the place after an event: a resume takes the steps after its own back, and they will come again."""
    step = min(place.step, int(event.payload["step"])) if event.kind == "resume" else place.step
    return replace(place, event=event.id, step=step)


def newest(service: Service, job_id: str) -> Place:
    """Return the place from which only what is yet to come is new. Raises NotFound."""
    service.job(job_id)
    lines, events = service.logs(job_id), service.events(job_id)
    return Place(service.latest_step(job_id), lines[-1].seq if lines else 0, events[-1].id if events else 0)


async def follow(request: Request, job_id: str, place: Place, *, points: bool = True) -> AsyncIterator[News]:
    """Yield a job's news until it has ended, is deleted, or the server stops; a sign of life after each silence.

    The last of a job that has ended comes even where there is no news, that its end can be told.
    """
    service: Service = request.app.state.service
    commits: Commits = request.app.state.commits
    clock = asyncio.get_running_loop().time
    told = clock()
    with commits.listen() as ear:
        while await ear.change(within=HEARTBEAT_S):
            try:
                news = await run_in_threadpool(since, service, job_id, place, points=points)
            except NotFound:
                return
            except StoreBusy:
                continue  # it is busy with a commit, and that is told
            place = news.place
            if news.any or news.job.finished or clock() - told >= HEARTBEAT_S:
                told = clock()
                yield news
            if news.job.finished:
                return
