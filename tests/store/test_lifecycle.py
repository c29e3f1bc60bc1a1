"""Whatever happens to jobs, in whatever order: the rows agree with each other and with what really happened.

A state machine submits, claims, lets workers write and die, lets dead and superseded workers write on, looks at it with
supervisors that remember old offsets, settles, cancels, retries and deletes.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.errors import Conflict
from engine.journal import JournalWriter
from engine.order import JOURNAL, Order
from engine.paths import Home
from engine.running import recover, starting
from engine.running.deaths import Death
from engine.running.ingest import ingest
from engine.service import Job, Service
from engine.settings import Settings
from store import attempts, catalog, jobs, states, telemetry
from store.attempts import Attempt
from tests.store import forked
from tests.store.entries import base_model, dataset

REQUEST: dict[str, Any] = {"type": "finetune", "base_model_id": "tiny", "dataset_id": "rows"}
JOBS = st.integers(0, 1)
WAY = {"provisioning": "staging", "staging": "running", "running": "checkpointing", "checkpointing": "running"}
DEATHS = st.sampled_from([Death(), Death(-9), Death(-11), Death(1), Death(-9, out_of_memory=True)])

ACTS = ("work", "work", "save", "next state", "look", "look as of long ago", "tear a line")
LIFE = st.lists(st.sampled_from(ACTS), min_size=2, max_size=10)
ENDS = ("goes on", "dies", "completed", "failed", "preempted", "disk_full")


@dataclass
class Worker:
    """One attempt's worker: what it did, which the store is to agree with."""

    attempt: Attempt
    writer: JournalWriter
    step: int
    state: str = "provisioning"
    said: str | None = None
    cause: str | None = None
    began: bool = False


@dataclass
class Known:
    """What is true of a job."""

    retries: int = 0
    fence: int = 0
    saved: int = 0
    worker: Worker | None = None
    gone: list[Worker] = field(default_factory=list)  # of earlier attempts, which may still write


class Lifecycle(RuleBasedStateMachine):
    """Everything that can happen to two jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=forked.FAST))
        self.now = 1000.0
        ids = count(1)
        self.home = Home(self.folder / "home")
        self.service = Service(self.home, config=Settings(), clock=lambda: self.now, new_id=lambda: f"job-{next(ids)}")
        self.keys = count(1)
        self.known: dict[str, Known] = {}

    def teardown(self) -> None:
        for known in self.known.values():
            for worker in (*known.gone, known.worker):
                if worker:
                    worker.writer.close()
        self.service.close()
        shutil.rmtree(self.folder)

    @initialize()
    def open(self) -> None:
        with self.service.store.write() as db:
            catalog.add_base_model(db, base_model())
            catalog.add_dataset(db, dataset())
        self.submit()

    def pick(self, number: int) -> Job | None:
        """Return a job, by its number among those that there are."""
        found = self.service.jobs()
        return found[number % len(found)] if found else None

    def working(self, number: int) -> tuple[Known, Worker] | None:
        """Return a job's worker, by the job's number among those that have one or can get one."""
        able = [job for job in self.service.jobs() if job.state == "queued" or self.known[job.id].worker]
        if not able:
            return None
        job = able[number % len(able)]
        if job.state == "queued":
            self.claim(job)
        known = self.known[job.id]
        assert known.worker is not None
        return known, known.worker

    # What users do ----------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.known) < 2)
    @rule()
    def submit(self) -> None:
        request = {**REQUEST, "idempotency_key": f"key-{next(self.keys)}", "hyperparams": {"steps": 1000}}
        job = self.service.submit(request).job
        assert self.service.submit(request).job == job
        self.known[job.id] = Known()

    @rule(number=JOBS, really=st.integers(0, 2))
    def cancel(self, number: int, really: int) -> None:
        job = self.pick(number)
        if job and really == 0:
            try:
                after = self.service.cancel(job.id)
            except Conflict:
                assert job.finished
            else:
                assert after.state == "cancelled" or after.stop_requested

    @rule(number=JOBS)
    def retry(self, number: int) -> None:
        job = self.pick(number)
        if job:
            try:
                after = self.service.retry(job.id)
            except Conflict:
                assert job.state not in ("failed", "cancelled")
            else:
                assert (after.state, after.stop_requested, after.retries) == ("queued", False, job.retries)

    @rule(number=JOBS, really=st.integers(0, 3))
    def delete(self, number: int, really: int) -> None:
        job = self.pick(number)
        if job and job.finished and really == 0:
            self.service.delete(job.id)
            for worker in self.known.pop(job.id).gone:
                worker.writer.close()

    # What the supervisor does -----------------------------------------------------------------------------------

    def claim(self, job: Job) -> None:
        known = self.known[job.id]
        directory = self.home.attempt(job.id, job.fence + 1)
        order = an_order(job)
        assert starting.claim(self.service.store, job, order, directory, self.now)
        # Another supervisor, which read the queue before that, is too late.
        assert not starting.claim(self.service.store, job, order, directory, self.now)
        directory.mkdir(parents=True)
        with self.service.store.write() as db:
            # Every fourth is as where the supervisor died before it knew its worker.
            if order.fence % 4:
                attempts.update(db, job.id, order.fence, boot_id="b", pid=1, start_ticks=1, gate_opened=1)
        attempt = attempts.get(self.service.store.read(), job.id, order.fence)
        assert attempt is not None
        writer = JournalWriter(directory / JOURNAL, order.fence, clock=lambda: self.now)
        known.fence += 1
        known.worker = Worker(attempt, writer, known.saved)

    def ingest(self, worker: Worker, *, remembered: bool = False) -> None:
        """Take in what a worker wrote, perhaps from an offset of long ago."""
        old = worker.attempt
        if not remembered:
            worker.attempt = attempts.get(self.service.store.read(), old.job_id, old.fence) or old
        ingest(self.service.store, worker.attempt)

    def end(self, known: Known, worker: Worker, death: Death) -> None:
        """See a worker's process gone: take in its last lines and decide what follows."""
        self.ingest(worker)
        job_id = worker.attempt.job_id
        attempt = attempts.get(self.service.store.read(), job_id, worker.attempt.fence)
        assert attempt is not None
        unstarted = attempt.pid is None and not worker.began
        with self.service.store.write() as db:
            if unstarted:
                recover.abandon(db, attempt, self.now)
            else:
                recover.settle(db, attempt, self.now, death)
        after = self.service.job(job_id)
        # A second supervisor that comes to the same end moves nothing any more.
        with self.service.store.write() as db:
            recover.settle(db, attempt, self.now, death)
            recover.abandon(db, attempt, self.now)
        assert self.service.job(job_id) == after
        assert after.state in ("queued", *states.FINISHED)
        if not unstarted and after.state == "queued" and worker.cause != "disk_full":
            known.retries += 1
        if worker.said == "completed":
            assert after.state == "completed"
        known.worker = None
        known.gone.append(worker)

    @rule()
    def everything_is_opened_anew(self) -> None:
        self.service.close()
        number = count(len(self.known) + 1000 + next(self.keys))
        self.service = Service(
            self.home, config=Settings(), clock=lambda: self.now, new_id=lambda: f"job-{next(number)}"
        )

    # What workers do --------------------------------------------------------------------------------------------

    @rule(number=JOBS, acts=LIFE, end=st.sampled_from(ENDS), death=DEATHS)
    def a_worker_lives(self, number: int, acts: list[str], end: str, death: Death) -> None:
        """Let a job's worker do some things; perhaps it says that it ends, perhaps it dies."""
        found = self.working(number)
        if not found:
            return
        known, worker = found
        self.now += 1
        for act in acts if not worker.said else []:
            self.act(known, worker, act)
        if end in ENDS[2:] and worker.began and not worker.said:
            worker.said = "preempted" if end == "disk_full" else end
            worker.cause = "disk_full" if end == "disk_full" else None
            if end == "completed":
                worker.writer.append("result", {"loss_final": 1.0})
            worker.writer.append("end", {"outcome": worker.said, "error": end, "cause": worker.cause})
        elif end == "dies" or worker.said:
            self.end(known, worker, death)

    @rule(lives=st.lists(st.tuples(JOBS, LIFE, DEATHS), min_size=1, max_size=4))
    def workers_live_and_die(self, lives: list[tuple[int, list[str], Death]]) -> None:
        for number, acts, death in lives:
            self.a_worker_lives(number, acts, "dies", death)

    def act(self, known: Known, worker: Worker, act: str) -> None:
        if act in ("look", "look as of long ago"):
            self.ingest(worker, remembered=act != "look")
        elif act == "tear a line":
            self.tear(worker)
        elif not worker.began:
            worker.writer.append("resume", {"step": worker.step})
            worker.began = True
        elif act == "work":
            worker.step += 1
            worker.writer.append("point", {"step": worker.step, "phase": "train", "ts": self.now, "loss": 1.0})
        elif act == "save":
            facts = {"epoch": 0.5, "loss": 1.0, "eval_loss": None, "lr": 1e-4, "bytes": 1, "path": f"/{worker.step}"}
            worker.writer.append("checkpoint", {"step": worker.step, **facts})
            known.saved = worker.step
        else:
            worker.state = WAY[worker.state]
            worker.writer.append("state", {"to": worker.state, "activity": worker.state})

    def tear(self, worker: Worker) -> None:
        """Leave half a line, look at that, and open the journal again, which takes it away."""
        path = Path(worker.attempt.directory) / JOURNAL
        with path.open("ab") as file:
            file.write(b'{"seq":999,"fence":')
        self.ingest(worker)
        worker.writer.close()
        worker.writer = JournalWriter(path, worker.attempt.fence, clock=lambda: self.now)

    @rule(number=JOBS, which=st.integers(0, 9), data=st.data())
    def a_worker_of_the_past_writes(self, number: int, which: int, data: st.DataObject) -> None:
        job = self.pick(number)
        gone = self.known[job.id].gone if job else []
        if not job or not gone:
            return
        worker = gone[which % len(gone)]
        kind, fields = data.draw(st.sampled_from(PAST))
        worker.writer.append(kind, fields)
        before = job
        ingest(self.service.store, worker.attempt)
        with self.service.store.write() as db:
            recover.settle(db, worker.attempt, self.now)
        assert self.service.job(job.id) == before

    # What has to hold -------------------------------------------------------------------------------------------

    @invariant()
    def rows_agree_with_each_other_and_with_what_happened(self) -> None:
        db = self.service.store.read()
        found = self.service.jobs()
        assert {job.id for job in found} == set(self.known)
        for job in found:
            known, history = self.known[job.id], attempts.of_job(db, job.id)
            changes = [event.payload for event in jobs.events(db, job.id) if event.kind == "state"]
            folded = None
            for change in changes:
                assert change["from"] == folded
                assert folded is None or change["to"] in states.TRANSITIONS[folded], change
                folded = change["to"]
            assert job.state == folded
            assert job.fence == known.fence == len(history)
            assert [attempt.fence for attempt in history] == list(range(1, job.fence + 1))
            opened = [attempt.fence for attempt in history if attempt.ended_at is None]
            assert opened == ([job.fence] if known.worker else [])
            assert bool(opened) == (job.state in states.ACTIVE)
            assert job.retries == known.retries
            steps = [point.step for point in telemetry.points(db, job.id, phase="train")]
            assert steps == list(range(1, job.step + 1))
            saved = [checkpoint.step for checkpoint in telemetry.checkpoints(db, job.id)]
            assert job.last_checkpoint_step == max(saved, default=0) <= max(known.saved, 0)
        for table in ("attempts", "events", "metrics", "checkpoints", "results"):
            orphans = f"SELECT count(*) FROM {table} WHERE job_id NOT IN (SELECT id FROM jobs)"
            assert db.execute(orphans).fetchone()[0] == 0


# Lines that would spoil something if they were taken from a worker that has the job no more.
PAST: list[tuple[str, dict[str, Any]]] = [
    ("point", {"step": 777, "phase": "train", "ts": 1.0, "loss": 9.0}),
    ("state", {"to": "running", "activity": "from the past"}),
    ("state", {"to": "queued", "activity": "from the past"}),
    ("end", {"outcome": "failed", "error": "from the past", "cause": None}),
    ("resume", {"step": 0}),
    ("result", {"loss_final": 0.0}),
    ("checkpoint_gone", {"step": 1, "state": "quarantined"}),
]


def an_order(job: Job) -> Order:
    """Return an order for the next attempt at a job."""
    values = {"model_id": "m", "model_name": "tiny", "model_path": "/m", "dataset_name": "rows", "dataset_path": "/d"}
    more = {"dataset_sha256": "0", "output_id": "o", "output_name": "o", "output_path": "/o", "checkpoint_roots": ()}
    kind = {"type": job.type, "device": "cpu", "hyperparams": job.hyperparams}
    return Order(job_id=job.id, fence=job.fence + 1, **kind, **values, **more)


class LongLifecycle(Lifecycle):
    """The same for longer."""


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=10, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLongLifecycle = pytest.mark.slow(LongLifecycle.TestCase)
TestLongLifecycle.settings = settings(
    max_examples=200, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
