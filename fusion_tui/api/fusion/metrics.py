"""Dialect A's routes for what a job reports while it runs: metrics and logs, newer than what the client has.

The rule: as in `jobs`; and asking for a long curve never keeps others waiting: it has threads of its own, and what many
clients look at is written down once.
"""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic_core import to_json

from engine.service import OWN, Point, Service, Thinned
from fusion_tui.api import errors, threads
from fusion_tui.api.access import LARGEST, READ, Engine, Id
from fusion_tui.api.answer import iso
from fusion_tui.api.fusion import answers

router = APIRouter(prefix="/jobs/{id}", tags=["jobs"], responses=errors.documented(401, 403, 404, 421, 422, 503))

FIELDS = tuple(answers.Point.model_fields)
values = attrgetter(*FIELDS)
AT_ONCE = 200  # steps: what a client who follows a run has not seen yet
KEPT_POINTS = 5000  # the most of an answer that is worth keeping

MaxPoints = Annotated[
    int | None, Query(ge=2, le=100_000, description="Thin the curve to so many points; its spikes stay from 8 up.")
]


@lru_cache(maxsize=8192)  # who follows a run, or looks at its curve again, gets mostly the points that others got
def _text(point: Point) -> bytes:
    fields = dict(zip(FIELDS, values(point), strict=True))
    return to_json(fields | {"ts": iso(point.ts)}, inf_nan_mode="null")


def written_points(job_id: str, thinned: Thinned) -> bytes:
    """Return what `answers.Metrics` comes to as JSON, in a fraction of the time: there may be thousands of points."""
    own = (point.step for point in thinned.points if point.phase in OWN)
    latest = max(own, default=thinned.latest_step)
    head = to_json({"job_id": job_id, "count": len(thinned.points), "latest_step": latest, "points": []})
    return b"%b[%b]}" % (head.removesuffix(b"[]}"), b",".join(map(_text, thinned.points)))


_kept = lru_cache(maxsize=16)(written_points)  # a thinned curve is one object for as long as it stands


def _thinned(service: Service, job_id: str, since_step: int, most: int) -> bytes:
    thinned = service.thinned(job_id, since_step=since_step, most=most)
    return (_kept if len(thinned.points) <= KEPT_POINTS else written_points)(job_id, thinned)


def _newest(service: Service, job_id: str, since_step: int) -> bytes | None:
    """Return the points beyond a step, where these are of the last few steps alone."""
    latest = service.latest_step(job_id)
    return _points(service, job_id, since_step, latest) if since_step >= max(latest - AT_ONCE, 0) else None


def _whole(service: Service, job_id: str, since_step: int) -> bytes:
    return _points(service, job_id, since_step, service.latest_step(job_id))


def _points(service: Service, job_id: str, since_step: int, latest: int) -> bytes:
    """`latest` was read before the points, so that nobody who asks next for newer ones misses any."""
    service.job(job_id)
    return written_points(job_id, Thinned(tuple(service.points(job_id, since_step=since_step)), latest))


@router.get("/metrics", dependencies=READ, response_model=answers.Metrics)
async def get_metrics(
    request: Request,
    service: Engine,
    job_id: Id,
    since_step: Annotated[int, Query(ge=-1, le=LARGEST)] = -1,
    max_points: MaxPoints = None,
) -> Response:
    """Return the telemetry points strictly newer than `since_step`; `latest_step` is what to give for it next time.

    Both count the job's own steps: those of the phases train and eval. Points of other phases (of growing, shrinking,
    or the comparison with an ungrown model) count other things, and come when `since_step` is below 0 or left out; of
    a job that makes no steps of its own, as a contract job without healing, they are all there is, and count here.

    With `max_points`, a longer curve is thinned: the first and the last point stay, evaluations as far as there is
    room, and of every part of the rest the points of the least and the greatest loss.
    """
    if max_points is not None:
        body: bytes | None = await threads.run(
            request, threads.CURVES, _thinned, service, job_id, since_step, max_points
        )
    else:
        body = await threads.at_once(_newest, service, job_id, since_step)
        if body is None:
            body = await threads.run(request, threads.WHOLE_CURVES, _whole, service, job_id, since_step)
    return Response(body, media_type=JSONResponse.media_type)


@router.get("/logs", dependencies=READ)
def get_logs(service: Engine, job_id: Id, since: Annotated[int, Query(ge=0, le=LARGEST)] = 0) -> answers.Logs:
    """Return the kept log lines with a number above `since`."""
    service.job(job_id)
    kept = service.logs(job_id)
    return answers.Logs.of(job_id, [line for line in kept if line.seq > since], kept[-1].seq if kept else 0)
