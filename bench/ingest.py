"""From journal to store: how many rows a second, catching up and beside an API that is polled.

Three parts. *Catching up*: a journal that grew while no supervisor ran is taken in by `engine.running.ingest`, beside
the same lines taken in one by one with Python's own JSON parser, and beside SQLite's insertion of the same rows alone,
which is the ceiling of any way with one row a point. Once with the rows of the training loop (17 numbers), once with
lean ones (step, time, loss, rate). *Sustained*: a worker process that reports RATE steps a second, the real supervisor,
the real API, and a client that polls jobs and metrics; how far the store is behind, and how long the requests take.

    python -m bench.ingest [--rows 200000] [--runs 5] [--rate 5000] [--seconds 20] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from bench import chatty
from engine import journal
from engine.order import JOURNAL
from engine.paths import Home
from engine.resources import Device
from engine.running import ingest
from engine.running.supervisor import Supervisor
from engine.service import Service
from engine.settings import Settings
from engine.trainer.reporter import Reporter
from fusion_tui.api.server import ApiServer
from store import Store, attempts, jobs, telemetry
from store.attempts import Attempt
from store.telemetry import Point

BAR_ROWS_PER_SECOND = 300_000
LEAN = ("step", "phase", "ts", "loss", "lr")


def a_run(home: Path) -> tuple[Service, Attempt]:
    """Return a service with one run that a worker has begun."""
    service = Service(Home(home), config=Settings())
    request = {"type": "finetune", "base_model_id": "starter", "dataset_id": "starter", "idempotency_key": "bench"}
    job = service.submit({**request, "hyperparams": {"steps": 100_000}}).job
    directory = service.home.attempt(job.id, 1)
    directory.mkdir(parents=True)
    with service.store.write() as db:
        jobs.transition(db, job.id, "provisioning", fence=0, new_fence=1, now=1.0)
        attempts.begin(db, job.id, 1, device="cpu", directory=str(directory), start_step=0, now=1.0)
        for state in ("staging", "running"):
            jobs.transition(db, job.id, state, fence=1, now=1.0)
    return service, attempt_of(service.store, job.id)


def attempt_of(store: Store, job_id: str) -> Attempt:
    """Return the run's attempt as stored."""
    return attempts.of_job(store.read(), job_id)[-1]


def write_journal(attempt: Attempt, rows: int, *, lean: bool) -> None:
    """Write the journal of `rows` steps as the worker does."""
    writer = journal.JournalWriter(Path(attempt.directory) / JOURNAL, 1)
    for begin in range(1, rows + 1, 1000):
        points = [chatty.point(step) for step in range(begin, min(begin + 1000, rows + 1))]
        Reporter(writer).points([{key: point[key] for key in LEAN} for point in points] if lean else points)
    writer.close()


def ours(store: Store, attempt: Attempt) -> float:
    """Take the journal in as the supervisor does; return the seconds."""
    begun = time.perf_counter()
    while ingest.ingest(store, attempt_of(store, attempt.job_id)):
        pass
    return time.perf_counter() - begun


def plain(store: Store, attempt: Attempt) -> float:
    """Take the same lines in without our shortcuts: each parsed alone, each inserted by a statement of its own."""
    begun = time.perf_counter()
    with (Path(attempt.directory) / JOURNAL).open("rb") as file, store.write() as db:
        for line in file:
            data = json.loads(line)["data"]
            point = Point(**{key: value for key, value in data.items() if key in Point._fields})
            telemetry.add_points(db, attempt.job_id, 1, [point])
    return time.perf_counter() - begun


def insertion(store: Store, attempt: Attempt) -> float:
    """Insert rows that were read before: what SQLite alone takes."""
    rows, offset = [], 0
    while (batch := journal.read(Path(attempt.directory) / JOURNAL, offset)).records:
        offset = batch.offset
        rows += [Point(**{key: record.data.get(key) for key in Point._fields}) for record in batch.records]
    rows = [row._replace(cycle=0) for row in rows]
    begun = time.perf_counter()
    with store.write() as db:
        telemetry.add_points(db, attempt.job_id, 1, rows)
    return time.perf_counter() - begun


WAYS: dict[str, Callable[[Store, Attempt], float]] = {
    "ours": ours,
    "SQLite's insertion alone": insertion,
    "line by line": plain,
}


def catch_up(rows: int, *, lean: bool) -> dict[str, float]:
    """Return the rows a second of each way, on stores and journals of their own."""
    found = {}
    for name, way in WAYS.items():
        # Line by line is slow, and its speed does not depend on how many there are.
        count = rows // 10 if way is plain else rows
        with tempfile.TemporaryDirectory() as folder:
            service, attempt = a_run(Path(folder) / "home")
            write_journal(attempt, count, lean=lean)
            found[name] = count / way(service.store, attempt)
            assert len(service.points(attempt.job_id)) == count
            service.close()
    return found


def sustained(rate: float, seconds: float) -> dict[str, float]:
    """Run a worker of `rate` steps a second beside a polled API; return how it went."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Home(Path(folder) / "home"), config=Settings())
        request = {"type": "finetune", "base_model_id": "starter", "dataset_id": "starter", "idempotency_key": "bench"}
        job = service.submit({**request, "hyperparams": {"steps": 100_000}}).job
        one = [Device("cpu", "CPU", 0, 1 << 40)]
        supervisor = Supervisor(service, launch=chatty.launcher(rate, seconds), devices=lambda: one)
        server, stop = ApiServer(service, "127.0.0.1", 0), threading.Event()
        server.start()
        works = threading.Thread(target=supervisor.run, args=(stop,))
        works.start()
        behind, took = poll(service, server.url, job.id, rate)
        stop.set()
        works.join()
        server.stop()
        steps = (service.result(job.id) or {})["steps"]
        stored = [point.step for point in service.points(job.id)]
        assert stored == list(range(1, steps + 1)), "a gap or a duplicate"
        supervisor.close()
        service.close()
    return {
        "rows_per_second": steps / seconds,
        "behind_p50_s": statistics.median(behind),
        "behind_p99_s": percentile(behind, 0.99),
        "requests": float(len(took)),
        "request_p50_ms": 1000 * statistics.median(took),
        "request_p99_ms": 1000 * percentile(took, 0.99),
    }


def poll(service: Service, url: str, job_id: str, rate: float) -> tuple[list[float], list[float]]:
    """Poll as a script does until the run ends; return seconds that the newest point was old, and requests took."""
    behind, took = [], []
    headers = {"Authorization": f"Bearer {service.token()}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False) as http:
        while True:
            begun = time.perf_counter()
            job = http.get(f"/jobs/{job_id}").json()
            since = max(0, job["step"] - 100)
            points = http.get(f"/jobs/{job_id}/metrics", params={"since_step": since}).json()["points"]
            took.append((time.perf_counter() - begun) / 2)
            if job["status"] in ("completed", "failed"):
                assert job["status"] == "completed", job
                return behind, took
            if points and job["status"] == "running":
                behind.append(time.time() - service.points(job_id, since_step=since)[-1].ts)
            time.sleep(0.02)


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Print the tables, or with --json the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=5000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    runs = {
        kind: [catch_up(asked.rows, lean=kind == "lean rows") for _ in range(asked.runs)]
        for kind in ("rows of the loop", "lean rows")
    }
    found: dict[str, Any] = {
        kind: {name: statistics.median(one[name] for one in each) for name in WAYS} for kind, each in runs.items()
    }
    beside = sustained(asked.rate, asked.seconds)
    if asked.json:
        print(json.dumps({"catching_up": found, "sustained": beside}, indent=1))
        return
    print(f"catching up: {asked.rows:,} rows, medians of {asked.runs} runs; bar {BAR_ROWS_PER_SECOND:,} rows/s")
    for kind, figures in found.items():
        for name, value in figures.items():
            print(f"  {kind:<18}{name:<26}{value:>10,.0f} rows/s{figures['ours'] / value:>8.2f}×")
    print(f"sustained, with the API polled: {beside['rows_per_second']:,.0f} rows/s for {asked.seconds:.0f} s, no gap")
    print(f"  newest point's age in the store   p50 {beside['behind_p50_s']:.2f} s, p99 {beside['behind_p99_s']:.2f} s")
    print(
        f"  a request of {beside['requests']:.0f}              "
        f"p50 {beside['request_p50_ms']:.1f} ms, p99 {beside['request_p99_ms']:.1f} ms"
    )


if __name__ == "__main__":
    main()
