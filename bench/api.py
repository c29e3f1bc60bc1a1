"""How long the HTTP API takes to answer fifty clients, with a full store and a training beside it.

The store holds JOBS jobs, one of them with POINTS metric points, which goes on growing. The server is the background
process as users have it: supervisor and API in one, and its worker trains the starter model. CLIENTS clients, each on a
connection of its own, ask once every PAUSE seconds, at times of their own (an open load: CLIENTS/PAUSE requests a
second in all, however long the answers take); each goes through the reading requests in turn, and every
SUBMIT_EVERY-th request of all is a submit. Then the same clients ask without a pause, which tells what the server can
do at most, and nothing about waiting: there it is the queue that is measured.

Beside it, in the same run and beside the same training, a route of FastAPI that does nothing, in a process that does
nothing else, answers the same clients as often: what no server written with it goes below on this machine at this time.

How a store is kept decides a good part of it: with a write-ahead log nobody who reads waits for who writes; without one
(an SQLite before 3.51.3 and its like, see `store.db`) every commit keeps the readers out while the disk flushes. --wal
measures with the log whatever the SQLite here is: what a newer one would do. --cores 1 has the training take one core,
as a worker does whose model is on a card; without it, it takes them all.

    python -m bench.api [--wal] [--cores 1] [--jobs 10000] [--points 1000000] [--clients 50] [--seconds 30] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui import daemon
from store import db as database
from store import jobs, telemetry
from store.telemetry import Point
from tests.conditions import eventually

# What issue and design ask for, in ms at the 99th of 100 requests.
BARS = {
    "GET /jobs/{id}": 10.0,
    "GET …/metrics, newest 100": 10.0,
    "GET …/metrics, whole in 1000": 100.0,
    "GET /jobs?limit=50": 20.0,
    "POST /jobs": 50.0,
}
BARE = "a bare route, in its own process"
BARE_APP = """
import sys, fastapi, uvicorn
app = fastapi.FastAPI()
app.get("/")(lambda: {})
uvicorn.run(app, port=int(sys.argv[1]), loop="auto", http="h11", log_level="error")
"""
SUBMIT_EVERY = 25
GROWS_BY = 10  # points, every GROWS_EVERY seconds
GROWS_EVERY = 0.5
LONG = str(uuid.UUID(int=7))
TRAINING = {"type": "finetune", "base_model_id": "starter", "dataset_id": "starter", "hyperparams": {"steps": 100_000}}
CLOSED_S = 5.0
LARGEST = 2**20  # bytes of an answer: a client that reads in small pieces measures itself
WITH_LOG = "import store.db; store.db.wal_is_safe = lambda version: True; from fusion_tui.daemon import main; main()"


@dataclass
class Taken:
    """Seconds that each kind of request took, and how many were answered otherwise than well."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in [*BARS, BARE]})
    failed: int = 0

    def rows(self) -> dict[str, dict[str, float]]:
        """Return count, median, p99 and most of each kind, in ms."""
        return {
            name: {
                "requests": len(all_of_them),
                "p50_ms": 1000 * statistics.median(all_of_them),
                "p99_ms": 1000 * sorted(all_of_them)[min(len(all_of_them) - 1, int(0.99 * len(all_of_them)))],
                "max_ms": 1000 * max(all_of_them),
            }
            for name, all_of_them in self.seconds.items()
            if all_of_them
        }


def point(step: int) -> Point:
    """Return a training point with every number that the loop reports."""
    loss = 2 + math.sin(step / 1e5) + random.random() * 0.1
    numbers = (1e9 + step * 0.1, loss, 1e-4, 1.0, 5000.0, 3.5, step * 256, step / 1000)
    return Point(step, "train", *numbers, 0.1, 0.01, 0.02, 0.03, 0.01, 0.0, 0)


def fill(service: Service, count: int, points: int) -> None:
    """Put finished jobs into the store; the newest but one has the long curve, with an evaluation every 5,000 steps."""
    plan = service.submit(TRAINING | {"idempotency_key": "template"}).job.plan
    with service.store.write() as db:
        db.conn.execute("DELETE FROM jobs")
        for number in range(count):
            jobs.insert(
                db,
                **{"id": LONG if number == count - 2 else str(uuid.uuid4()), "type": "finetune", "name": f"n{number}"},
                **{
                    "idempotency_key": f"fill-{number}",
                    "payload_hash": "-",
                    "hyperparams": {"steps": points, "lr": 1e-4},
                },
                **{"base_model_id": None, "source_model_id": None, "dataset_id": None, "tags": ["night"], "notes": ""},
                **{"total_steps": points, "now": 1e9 + number, "plan": plan},
            )
        db.conn.execute("UPDATE jobs SET state = 'completed', step = total_steps, started_at = 1e9, finished_at = 2e9")
    for begin in range(1, points + 1, 50_000):
        steps = range(begin, min(begin + 50_000, points + 1))
        evals = [Point(step, "eval", 1e9 + step * 0.1, loss=2.0) for step in steps if not step % 5000]
        with service.store.write() as db:
            telemetry.add_points(db, LONG, 0, [*map(point, steps), *evals])


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Client:
    """One connection, with as little of HTTP as the measurement needs: the client's own work is no part of it."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Send one request; return status and body."""
        text = json.dumps(body) if body else ""
        kind = f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n" if body else ""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=LARGEST)
        reader, writer = self._streams
        writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{kind}\r\n{text}".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r")[0])
        answer = await reader.readexactly(length)
        if "connection: close" in head:
            self.close()
        return int(head.split()[1]), answer

    def close(self) -> None:
        """Hang up."""
        if self._streams:
            self._streams[1].close()
        self._streams = None


class Load:
    """What the clients ask for, and what that took."""

    def __init__(self, port: int, key: str, training: str, newest: list[int]) -> None:
        self.taken = Taken()
        self._port, self._key = port, key
        self._training, self._newest = training, newest
        self._sent = 0

    def _next(self, turn: int) -> tuple[str, str, str, Any]:
        self._sent += 1
        if not self._key:
            return BARE, "GET", "/", None
        if not self._sent % SUBMIT_EVERY:
            return "POST /jobs", "POST", "/jobs", TRAINING | {"idempotency_key": str(uuid.uuid4())}
        paths = {
            "GET /jobs/{id}": f"/jobs/{self._training}",
            "GET …/metrics, newest 100": f"/jobs/{LONG}/metrics?since_step={self._newest[0] - 100}",
            "GET …/metrics, whole in 1000": f"/jobs/{LONG}/metrics?max_points=1000",
            "GET /jobs?limit=50": "/jobs?limit=50",
        }
        name = list(paths)[turn % len(paths)]
        return name, "GET", paths[name], None

    async def _client(self, number: int, pause: float, until: float) -> None:
        client, turn = Client(self._port, self._key), number
        due = time.perf_counter() + random.random() * pause
        while due < until:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            name, method, path, body = self._next(turn)
            begun = time.perf_counter()
            status, answer = await client.ask(method, path, body)
            self.taken.seconds[name].append(time.perf_counter() - begun)
            assert status in (200, 201), (status, answer[:300])
            due, turn = max(due + pause, time.perf_counter() if not pause else 0.0), turn + 1
        client.close()

    async def run(self, clients: int, pause: float, seconds: float) -> Taken:
        """Have the clients ask for so long; return what it took."""
        until = time.perf_counter() + seconds
        await asyncio.gather(*(self._client(number, pause, until) for number in range(clients)))
        return self.taken


def grow(service: Service, newest: list[int], stop: threading.Event) -> None:
    """Write what a worker of the long run would report."""
    while not stop.wait(GROWS_EVERY):
        with service.store.write() as db:
            new = range(newest[0] + 1, newest[0] + GROWS_BY + 1)
            telemetry.add_points(db, LONG, 0, list(map(point, new)))
        newest[0] += GROWS_BY


def bare(training: str, newest: list[int], asked: argparse.Namespace) -> Taken:
    """Return what the bare route takes of the same clients."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", BARE_APP, str(port)])
    try:

        def is_up() -> bool:
            with socket.socket() as connection:
                return connection.connect_ex(("127.0.0.1", port)) == 0

        eventually(is_up, within=60, what="the bare server")
        return uvloop.run(Load(port, "", training, newest).run(asked.clients, asked.pause, asked.seconds))
    finally:
        server.terminate()
        server.wait()


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Fill a store, start server and training, load it; return the figures."""
    if asked.wal:
        database.wal_is_safe = lambda version: True
    with tempfile.TemporaryDirectory() as folder:
        home, port = Home(Path(folder) / "home"), free_port()
        service = Service(home, config=Settings())
        fill(service, asked.jobs, asked.points)
        mode = service.store.read().execute("PRAGMA journal_mode").fetchone()[0]
        threads = {"OMP_NUM_THREADS": str(asked.cores)} if asked.cores else {}
        log = (Path(folder) / "server.log").open("wb")
        server = subprocess.Popen(
            [sys.executable, *(["-c", WITH_LOG] if asked.wal else ["-m", "fusion_tui.daemon"]), "--port", str(port)],
            **{"env": {**os.environ, "FUSION_HOME": str(home.root)} | threads, "stdout": log, "stderr": log},
        )
        stop, newest = threading.Event(), [asked.points]
        try:
            eventually(lambda: daemon.running(home), within=60, what="the server")
            training = service.submit(TRAINING | {"idempotency_key": "beside"}).job.id
            eventually(lambda: service.job(training).step > 0, within=300, what="the training's first step")
            key = service.token()
            begun = time.perf_counter()
            uvloop.run(Client(port, key).ask("GET", f"/jobs/{LONG}/metrics?max_points=1000"))
            cold = time.perf_counter() - begun
            grower = threading.Thread(target=grow, args=(service, newest, stop))
            grower.start()
            before, at = service.job(training).step, time.perf_counter()
            load = os.getloadavg()[0]
            opened = uvloop.run(Load(port, key, training, newest).run(asked.clients, asked.pause, asked.seconds))
            steps = (service.job(training).step - before) / (time.perf_counter() - at)
            closed = uvloop.run(Load(port, key, training, newest).run(asked.clients, 0.0, CLOSED_S))
            floor = bare(training, newest, asked)
            stop.set()
            grower.join()
        finally:
            stop.set()
            for job in service.jobs(status="queued"):
                service.cancel(job.id)
            service.cancel(training)
            eventually(lambda: service.job(training).finished, within=60, what="the training's end")
            server.terminate()
            server.wait()
            service.close()
    total = sum(map(len, closed.seconds.values()))
    return {
        "journal_mode": mode,
        "polled": opened.rows() | floor.rows(),
        "without_a_pause": closed.rows(),
        "most_requests_per_second": total / CLOSED_S,
        "first_reading_of_the_long_curve_s": cold,
        "training_steps_per_second": steps,
        "load_before_and_after": [load, os.getloadavg()[0]],
    }


def main() -> None:
    """Print the table, or with --json the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--pause", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--cores", type=int, help="that the training takes: 1, as on a card; else all")
    parser.add_argument("--wal", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked)
    if asked.json:
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
        print(json.dumps({"machine": machine, **vars(asked), **found}, indent=1))
        return
    print(f"{asked.jobs:,} jobs, one with {asked.points:,} points and growing; a training beside")
    rate = asked.clients / asked.pause
    print(f"{asked.clients} clients, each every {asked.pause:g} s: {rate:.0f} requests/s; {found['journal_mode']} mode")
    print(f"{'':<34}{'requests':>9}{'p50':>9}{'p99':>9}{'most':>9}{'bar p99':>10}")
    for name, row in found["polled"].items():
        times = "".join(f"{row[key]:>7.1f}ms" for key in ("p50_ms", "p99_ms", "max_ms"))
        bar = f"{BARS[name]:>8.0f}ms" if name in BARS else ""
        print(f"{name:<34}{row['requests']:>9}{times}{bar}")
    print(f"without a pause: {found['most_requests_per_second']:.0f} requests/s; of each the time in the queue, p50:")
    print("  " + "; ".join(f"{name} {row['p50_ms']:.0f} ms" for name, row in found["without_a_pause"].items()))
    print(f"the long curve's first reading: {found['first_reading_of_the_long_curve_s']:.1f} s")
    load = " and ".join(f"{one:.1f}" for one in found["load_before_and_after"])
    print(f"training beside: {found['training_steps_per_second']:.2f} steps/s; load before and after {load}")


if __name__ == "__main__":
    main()
