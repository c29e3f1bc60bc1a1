"""Workers killed at random, over and over: nothing is lost, doubled or misreported, and each death is noticed at once.

The supervisor is the real one, ticking in a thread of the test; the workers are the real trainer, forked from a
process that has its libraries loaded.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import journal, process
from engine.order import JOURNAL
from engine.resources import Device
from engine.running import evidence
from engine.running.supervisor import Supervisor
from engine.service import Service
from store import attempts, states
from store.attempts import Attempt
from tests import worker
from tests.conditions import eventually
from tests.supervised import Supervised

STEPS = 120
# Long enough for a checkpoint or two, so that runs get on; short enough to hit loading, saving and publishing too.
LIFE_S = (0.2, 1.0)
DEATHS_AT_MOST = 2


@pytest.fixture
def supervisor(service: Service) -> Iterator[Supervisor]:
    """A real supervisor with two devices of which each takes a run, working until the test ends."""
    both = [Device(f"cpu:{number}", f"half of the CPU ({number})", 0, 1 << 40) for number in range(2)]
    working = Supervisor(service, devices=lambda: both, launch=worker.launch)
    stop = threading.Event()
    thread = threading.Thread(target=working.run, args=(stop,))
    thread.start()
    yield working
    stop.set()
    thread.join()
    for attempt in attempts.open_attempts(service.store.read()):
        if identity := evidence.worker(attempt):
            process.send(identity, signal.SIGKILL)
    working.close()


def submit(service: Service, number: int) -> str:
    """Queue a run that is long beside the lives of its workers."""
    settings = {"steps": STEPS, "seq_len": 64, "batch_size": 2, "save_steps": 3, "eval_steps": 200, "lr": 1e-3}
    request = {"type": "finetune", "idempotency_key": str(number), "base_model_id": "tiny", "dataset_id": "sums"}
    return service.submit({**request, "hyperparams": settings}).job.id


def kill_one(service: Service, rng: random.Random) -> tuple[str, int, float] | None:
    """Kill the worker of an open attempt; return (job, fence, when), or None where none could be killed."""
    running = [attempt for attempt in attempts.open_attempts(service.store.read()) if attempt.gate_opened]
    known = [attempt for attempt in running if deaths_without_progress(service, attempt) < DEATHS_AT_MOST]
    if not known:
        return None
    attempt = rng.choice(known)
    identity = evidence.worker(attempt)
    assert identity is not None
    # Stopped first, so that one that has just written its end is not counted as killed.
    if not process.send(identity, signal.SIGSTOP):
        return None
    said = journal.read(Path(attempt.directory) / JOURNAL, 0).records
    if any(record.kind == "end" for record in said) or not process.send(identity, signal.SIGKILL):
        process.send(identity, signal.SIGCONT)
        return None
    return attempt.job_id, attempt.fence, time.time()


def deaths_without_progress(service: Service, attempt: Attempt) -> int:
    """Return how often in a row the run's workers died with no new checkpoint: after five it is given up, rightly."""
    step = service.job(attempt.job_id).last_checkpoint_step
    before = attempts.of_job(service.store.read(), attempt.job_id)[:-1]
    return len(
        list(itertools.takewhile(lambda one: one.outcome == "lost" and one.start_step == step, reversed(before)))
    )


def is_closed(service: Service, job_id: str, fence: int) -> bool:
    """Say whether the attempt under this fence was closed, and with it its job requeued."""
    attempt = attempts.get(service.store.read(), job_id, fence)
    return attempt is not None and attempt.ended_at is not None


def torment(service: Service, *, jobs: int, kills: int, seed: int) -> list[float]:
    """Keep `jobs` runs going and kill `kills` workers; return the seconds from each death to its requeue."""
    rng, delays = random.Random(seed), []
    ids = [submit(service, number) for number in range(jobs)]
    killed: dict[str, int] = dict.fromkeys(ids, 0)
    while len(delays) < kills:
        until = time.monotonic() + rng.uniform(*LIFE_S)
        eventually(lambda until=until: time.monotonic() > until)
        unfinished = [job_id for job_id in ids if not service.job(job_id).finished]
        if not unfinished:
            # The runs are faster than the killer: more of them.
            ids.append(submit(service, len(ids)))
            killed[ids[-1]] = 0
        struck = kill_one(service, rng)
        if struck:
            job_id, fence, when = struck
            killed[job_id] += 1
            eventually(lambda job_id=job_id, fence=fence: is_closed(service, job_id, fence), what="the requeue")
            # As another process sees it: the commit is part of it, and this loop's own 10 ms.
            delays.append(time.time() - when)
    for job_id in ids:
        job = eventually(lambda job_id=job_id: (j := service.job(job_id)).finished and j, within=600, what="the end")
        assert (job.state, job.error) == (states.COMPLETED, None)
        assert job.retries == killed[job_id]
        check_telemetry(service, job_id, STEPS)
    assert len(service.models()) == len(ids)
    return delays


def check_telemetry(service: Service, job_id: str, steps: int) -> None:
    """The store holds each step once, in order, and of each what the last worker that made it wrote."""
    points = [point for point in service.points(job_id) if point.phase == "train"]
    assert [point.step for point in points] == list(range(1, steps + 1))
    told: dict[int, float] = {}
    for attempt in attempts.of_job(service.store.read(), job_id):
        for record in records_of(Path(attempt.directory) / JOURNAL):
            if record.kind == "resume":
                told = {step: loss for step, loss in told.items() if step <= record.data["step"]}
            if record.kind == "point" and record.data["phase"] == "train":
                told[record.data["step"]] = record.data["loss"]
    assert {point.step: point.loss for point in points} == told


def records_of(path: Path) -> Iterator[journal.Record]:
    """Yield every record of a journal."""
    offset = 0
    while (batch := journal.read(path, offset)).offset > offset:
        yield from batch.records
        offset = batch.offset


@pytest.mark.parametrize(
    ("jobs", "kills"),
    [(2, 10), pytest.param(5, 50, marks=pytest.mark.slow), pytest.param(20, 1000, marks=pytest.mark.slow)],
    ids=["ten", "fifty", "a-thousand"],
)
def test_workers_killed_at_random_lose_nothing_and_retries_count_them(
    service: Service, supervisor: Supervisor, jobs: int, kills: int, say: Callable[[str], None]
) -> None:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    delays = sorted(torment(service, jobs=jobs, kills=kills, seed=kills))
    service.store.check()
    (verdict,) = service.store.read().execute("PRAGMA integrity_check").fetchone()
    assert verdict == "ok"
    p99 = delays[min(len(delays) - 1, int(0.99 * len(delays)))]
    p50 = statistics.median(delays)
    say(
        f"{kills} kills of {len(service.jobs())} runs, 0 lost; death to requeue: p50 {1000 * p50:.0f} ms, "
        f"p99 {1000 * p99:.0f} ms; integrity_check {verdict}; load at the start {load:.1f} on {cores} cores"
    )
    assert p50 < 1.0
    # Of a thousand, and where nobody else had the cores: else it is the machine that is measured.
    if kills >= 1000 and load < cores:
        assert p99 <= 0.25


@pytest.mark.parametrize(
    ("supervisors", "workers"), [(2, 1), pytest.param(60, 20, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_with_both_ends_killed_the_store_holds_what_the_journals_hold(
    supervised: Supervised, supervisors: int, workers: int
) -> None:
    rng = random.Random(supervisors)
    # More steps than it can make while supervisors start: it is still there for the last strike, and stopped then.
    job = supervised.submit(steps=100_000, save_steps=10)
    supervised.until_step(job.id, 20)
    strikes = ["supervisor"] * supervisors + ["worker"] * workers
    rng.shuffle(strikes)
    for strike in strikes:
        if strike == "worker":
            before = supervised.job(job.id).retries
            supervised.kill_worker(job.id)
            eventually(lambda before=before: supervised.job(job.id).retries > before, what="the requeue")
        else:
            supervised.kill()
            supervised.start()
        # Some way on, but not always to the next checkpoint.
        now = supervised.job(job.id).step
        supervised.until_step(job.id, now + rng.randint(1, 12))
    supervised.service.cancel(job.id)
    done = supervised.until_finished(job.id)
    assert (done.state, done.retries, done.error) == (states.CANCELLED, workers, None)
    assert done.last_checkpoint_step == done.step > 20
    check_telemetry(supervised.service, job.id, done.step)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print past the capture: the soak's figures are for who runs it."""

    def speak(text: str) -> None:
        with capsys.disabled():
            os.write(1, f"\n{text}\n".encode())

    return speak
