"""A real supervisor for tests, and the few things that crash tests do to it and its workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine import process
from engine.process import Identity
from engine.running import evidence
from engine.running.supervisor import Supervisor
from engine.service import Job, Service
from fusion_tui import daemon
from store import attempts
from store.attempts import Attempt
from tests import worker
from tests.conditions import eventually


class Supervision:
    """A data folder that is supervised, whoever does it, and its jobs."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def submit(self, **hyperparams: Any) -> Job:
        """Queue a small fine-tune of the tiny model."""
        settings = {"steps": 60, "seq_len": 64, "batch_size": 2, "lr": 1e-3, "save_steps": 10, **hyperparams}
        request = {
            "type": "finetune",
            "idempotency_key": os.urandom(8).hex(),
            "base_model_id": "tiny",
            "dataset_id": "sums",
            "hyperparams": settings,
        }
        return self.service.submit(request).job

    def job(self, job_id: str) -> Job:
        """Return the job as it is now."""
        return self.service.job(job_id)

    def until_step(self, job_id: str, step: int, *, within: float = 180.0) -> Job:
        """Wait until a job has reached `step`."""

        def reached() -> Job | None:
            job = self.job(job_id)
            assert job.state != "failed", job.error
            return job if job.step >= step else None

        return eventually(reached, within=within, what=f"step {step}")

    def until_finished(self, job_id: str, *, within: float = 180.0) -> Job:
        """Wait until a job is finished."""
        return eventually(lambda: job if (job := self.job(job_id)).finished else None, within=within, what="the end")

    def attempt(self, job_id: str) -> Attempt:
        """Return the newest attempt at a job."""
        return attempts.of_job(self.service.store.read(), job_id)[-1]

    def worker(self, job_id: str) -> Identity:
        """Wait for the identity of a job's current worker, and return it."""

        def known() -> Identity | None:
            attempt = attempts.get(self.service.store.read(), job_id, self.job(job_id).fence)
            return evidence.worker(attempt) if attempt and attempt.ended_at is None else None

        return eventually(known, what="a worker")

    def kill_worker(self, job_id: str) -> Identity:
        """Kill a job's worker with signal 9 and return who it was."""
        found = self.worker(job_id)
        assert process.send(found, signal.SIGKILL)
        return found

    def kill_all(self) -> None:
        """Kill every worker of this data folder."""
        for attempt in attempts.open_attempts(self.service.store.read()):
            if identity := evidence.worker(attempt):
                process.send(identity, signal.SIGKILL)


@contextmanager
def working(service: Service, launch: Callable[..., worker.Forked] = worker.launch) -> Iterator[None]:
    """Have a supervisor in this process carry out the queue, by workers that need no time to load their libraries."""
    supervisor, stop = Supervisor(service, launch=launch), threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        supervisor.close()


class Supervised(Supervision):
    """A data folder with a supervisor process that can be killed and started again."""

    def __init__(self, service: Service, port: int) -> None:
        super().__init__(service)
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start the supervisor, wait until it is up, and return its pid."""
        log = self.service.home.supervisor_log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fusion_tui.daemon", "--port", str(self.port)],
            env={**os.environ, "FUSION_HOME": str(self.service.home.root)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        pid = self._process.pid
        eventually(lambda: (info := daemon.running(self.service.home)) and info.identity.pid == pid, what="start")
        return pid

    def kill(self) -> None:
        """Kill the supervisor as an out-of-memory killer would."""
        self.end(signal.SIGKILL)

    def end(self, number: int) -> int:
        """End the supervisor by a signal and return its exit status."""
        self.send(number)
        assert self._process is not None
        return self._process.wait(timeout=60)

    def send(self, number: int) -> None:
        """Send the supervisor a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def clear_away(self) -> None:
        """End the supervisor and every worker of this data folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=60)
        self.kill_all()
