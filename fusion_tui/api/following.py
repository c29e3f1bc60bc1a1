"""Following a job while it runs: what is new of it, again and again until it has ended.

The rule: the job is read before its points and lines, so what a finished job had to say has been said when the
following ends; a long curve comes in parts, none of which keeps others waiting. Both dialects' streams are made of
this; each writes it in its own words.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from starlette.requests import Request

from engine.service import OWN, Event, Job, Key, LogLine, Point, Service
from fusion_tui.api import threads
from fusion_tui.api.commits import Commits
from store.errors import NotFound, StoreBusy

HEARTBEAT_S = 15.0  # silence after which a stream says that it lives
MOST_POINTS = 2000  # about, of one event


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
    """What happened to a job since a place; all empty: a sign of life. `more`: there may be more points already."""

    job: Job
    place: Place
    points: list[Point] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    more: bool = False

    @property
    def last(self) -> bool:
        """Whether none will come after these: the job has ended, and all is told."""
        return self.job.finished and not self.more

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
    lines = service.logs(job_id, since=place.line)
    place = replace(place, line=lines[-1].seq if lines else place.line)
    if not points:
        return News(job, place, [], lines, events)
    ahead = service.points_ahead(job_id, step=place.step, aside=place.aside, most=MOST_POINTS)
    place = replace(place, step=ahead.step, aside=ahead.aside)
    return News(job, place, ahead.points, lines, events, ahead.more)


def beyond(place: Place, event: Event) -> Place:
    """Return the place after an event: a resume takes the steps after its own back, and they will come again."""
    step = min(place.step, int(event.payload["step"])) if event.kind == "resume" else place.step
    return replace(place, event=event.id, step=step)


def newest(service: Service, job_id: str) -> Place:
    """Return the place from which only what is yet to come is new. Raises NotFound."""
    service.job(job_id)
    lines, events, step = service.logs(job_id), service.events(job_id), service.latest_step(job_id)
    # Where the job has made a step, those of other phases come no more.
    beside = (point.ts for point in service.points(job_id) if point.phase not in OWN) if step < 0 else ()
    return Place(
        step,
        lines[-1].seq if lines else 0,
        events[-1].id if events else 0,
        max(beside, default=0.0),
    )


def _look(service: Service, key: Key, job_id: str, place: Place, points: bool) -> News | None:
    """Return what is new, or None where the key has been revoked."""
    live = service.keys()
    return since(service, job_id, place, points=points) if key.id in {one.id for one in live} else None


async def follow(request: Request, job_id: str, place: Place, *, points: bool = True) -> AsyncIterator[News]:
    """Yield a job's news until it has ended, is deleted, the key is revoked, or the server stops; a sign of life after
    each silence.

    The last of a job that has ended comes even where there is no news, that its end can be told.
    """
    service: Service = request.app.state.service
    commits: Commits = request.app.state.commits
    key: Key = request.state.key
    clock = asyncio.get_running_loop().time
    told, more = clock(), False
    with commits.listen() as ear:
        while (more and not commits.stopped) or await ear.change(within=HEARTBEAT_S):
            try:
                news = await threads.run(request, threads.STREAMS, _look, service, key, job_id, place, points)
            except NotFound:
                return
            except StoreBusy:
                more = False
                continue  # it is busy with a commit, and that is told
            if news is None:
                return
            place, more = news.place, news.more
            if news.any or news.last or clock() - told >= HEARTBEAT_S:
                told = clock()
                yield news
            if news.last:
                return
