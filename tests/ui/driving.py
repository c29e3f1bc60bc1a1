"""Driving the app in tests: waiting for conditions, reading the screen, writing what a supervisor would write."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from textual.app import App
from textual.pilot import Pilot

from engine import process
from engine.process import Identity
from engine.service import Job, Point, Service
from fusion_tui.app import FusionApp
from store import attempts, jobs, telemetry

T = TypeVar("T")
SMALL, LARGE = (80, 24), (160, 45)


def open_app(service: Service, **options: Any) -> FusionApp:
    """Return the app with a fast poller and no real supervisor."""
    defaults: dict[str, Any] = {"supervisor": lambda: None, "start_supervisor": lambda: None, "interval": 0.02}
    return FusionApp(service, **(defaults | options))


async def until(pilot: Pilot[Any], condition: Callable[[], T], *, within: float = 60.0, what: str = "it") -> T:
    """Return the condition's first true value. Raises AssertionError, with the screen, after `within` seconds."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {within} s; the screen:\n{screen_text(pilot.app)}")
        await pilot.pause()
        await asyncio.sleep(0.005)
    return value


async def sees(pilot: Pilot[Any], *texts: str) -> None:
    """Wait until the screen shows all of `texts`, wherever its lines may be broken."""
    wanted = [" ".join(text.split()) for text in texts]
    await until(
        pilot, lambda: all(text in " ".join(screen_text(pilot.app).split()) for text in wanted), what=f"{texts}"
    )


def screen_text(app: App[Any]) -> str:
    """Return what the screen shows, without styles."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def curve(steps: Iterable[int], *, height: float = 4.0) -> list[Point]:
    """Return training points of a falling loss."""
    return [
        Point(
            step,
            "train",
            1000.0 + 2 * step,
            loss=height / (1 + step / 20) + 1,
            lr=2e-4,
            grad_norm=1.0,
            throughput=375.0,
            vram_gb=5.5,
            tokens=1024 * step,
        )
        for step in steps
    ]


class Runs:
    """Writes jobs and telemetry through the store's own functions."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def queue(self, name: str = "a-run", **hyperparams: Any) -> Job:
        """Submit a run."""
        return self.submit("finetune", name, dataset_id="data-1", hyperparams={"steps": 400, **hyperparams})

    def submit(self, type: str, name: str, **fields: Any) -> Job:
        """Submit a run of any type."""
        named = {"type": type, "idempotency_key": name, "name": name, "base_model_id": "model-1"}
        return self.service.submit(named | fields).job

    def move(self, job: Job, *states: str, **columns: Any) -> Job:
        """Take a run through states."""
        with self.service.store.write() as db:
            for state in states:
                fence = jobs.get(db, job.id).fence
                assert jobs.transition(db, job.id, state, fence=fence, now=time.time())
            if columns:
                jobs.update(db, job.id, **columns)
            return jobs.get(db, job.id)

    def start(self, name: str = "a-run", *, steps: int = 40) -> Job:
        """Return a run that trains and has reached `steps`."""
        job = self.work(self.queue(name), activity="training", eta_s=360.0)
        self.report(job, [Point(0, "eval", 1000.0, loss=5.25), *curve(range(1, steps + 1))])
        return self.service.job(job.id)

    def work(self, job: Job, **columns: Any) -> Job:
        """Have a worker that lives work on a queued run."""
        job = self.move(job, "provisioning", "staging", "running", **columns)
        self.claim(job, process.identify(os.getpid()))
        return job

    def claim(self, job: Job, worker: Identity | None) -> None:
        """Give a run an open attempt with this process for its worker; the tests' own is one that lives."""
        assert worker
        known = {"boot_id": worker.boot_id, "pid": worker.pid, "start_ticks": worker.start_ticks}
        directory = str(self.service.home.attempt(job.id, job.fence))
        with self.service.store.write() as db:
            attempts.begin(db, job.id, job.fence, device="cpu", directory=directory, start_step=0, now=time.time())
            attempts.update(db, job.id, job.fence, **known)

    def report(self, job: Job, points: list[Point]) -> None:
        """Ingest points."""
        with self.service.store.write() as db:
            telemetry.add_points(db, job.id, job.fence, points)
            jobs.update(db, job.id, step=max(point.step for point in points))

    def tell(self, job: Job, kind: str, **payload: Any) -> None:
        """Ingest an event as a worker reports it."""
        with self.service.store.write() as db:
            jobs.add_event(db, job.id, kind, payload, now=time.time())

    def aside(self, job: Job, *points: Point) -> None:
        """Ingest points of phases that move no step."""
        with self.service.store.write() as db:
            telemetry.add_points(db, job.id, job.fence, points)

    def log(self, job: Job, *lines: str) -> None:
        """Ingest log lines."""
        with self.service.store.write() as db:
            telemetry.add_log_lines(db, job.id, [(1.0, "stdout", line) for line in lines])

    def resume(self, job: Job, step: int, points: list[Point]) -> None:
        """The worker died, came back at `step`, and wrote `points`, all before anyone looked."""
        with self.service.store.write() as db:
            db.conn.execute("UPDATE jobs SET fence = fence + 1, retries = retries + 1 WHERE id = ?", [job.id])
            telemetry.forget_after(db, job.id, step)
            jobs.add_event(db, job.id, "resume", {"step": step}, now=time.time())
            telemetry.add_points(db, job.id, job.fence + 1, points)
