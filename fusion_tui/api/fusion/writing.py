"""Writing down jobs, where they were read.

The rule: for what is asked most, and nothing else. FastAPI would go to another thread for it, and each change of
threads waits its turn; the route names its `response_model` all the same, for the document. A job that has not changed
is not written down again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from fastapi import Response
from fastapi.responses import JSONResponse

from engine.service import Job
from fusion_tui.api.fusion import answers


@lru_cache(maxsize=1024)
def _text(job: Job) -> str:
    return answers.Job.of(job).model_dump_json(exclude_unset=True)


def written(job: Job, status: int = 200) -> Response:
    """Return a job as a response; fields that were never set stay away."""
    return Response(_text(job), status, media_type=JSONResponse.media_type)


def listed(jobs: Iterable[Job]) -> Response:
    """Return jobs as a response, as `written` does one."""
    return Response(f"[{','.join(map(_text, jobs))}]", media_type=JSONResponse.media_type)
