"""A supervisor and jobs that start after others: in their order, with what the one before made, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engine.jobs import chains
from engine.order import Order
from engine.resources import Device
from engine.running.supervisor import Supervisor
from engine.service import Job
from store import jobs, states
from tests.conditions import eventually
from tests.crash import light
from tests.engine.shapes import GPT_2, SMOLLM2_135M

GB = 10**9
# Two, so that only its predecessor can be what a job waits for.
DEVICES = [Device(f"cuda:{number}", "RTX", 0, 24 * GB) for number in range(2)]


class Bench:
    """A data folder with a supervisor that the test moves on by hand."""

    def __init__(self, folder: Path, **behaviour: Any) -> None:
        self.service = light.open_service(folder / "home", light.install(folder / "bin", **behaviour))
        self.supervisor = Supervisor(self.service, devices=lambda: DEVICES)

    def submit(self, model: str = "tiny", type: str = "finetune", **fields: Any) -> Job:
        """Queue a run."""
        data = {} if type == "contract" else {"dataset_id": "rows"}
        request = {"type": type, "idempotency_key": os.urandom(8).hex(), "base_model_id": model, **data, **fields}
        return self.service.submit(request).job

    def job(self, job: Job) -> Job:
        """Return a job as it is now."""
        return self.service.job(job.id)

    def until(self, job: Job, state: str) -> Job:
        """Let the supervisor work until a job is in this state, and return it."""

        def reached() -> bool:
            self.supervisor.tick()
            now = self.job(job)
            assert now.state == state or not now.finished, now.error
            return now.state == state

        eventually(reached, what=state)
        return self.job(job)

    def orders(self, job: Job) -> list[Order]:
        """Return what each of a job's workers was told."""
        return [Order.read(Path(attempt.directory)) for attempt in light.history(self.service, job.id)]


def bench_of(folder: Path, **behaviour: Any) -> Iterator[Bench]:
    made = Bench(folder, **behaviour)
    yield made
    made.supervisor.close()
    made.service.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield from bench_of(tmp_path, config=SMOLLM2_135M)


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Bench]:
    """One whose runs make models that cannot be grown."""
    yield from bench_of(tmp_path, config=GPT_2)


def test_a_chain_of_all_three_types_runs_by_itself_each_on_what_the_one_before_made(bench: Bench) -> None:
    tuned = bench.submit(hyperparams={"steps": 2})
    grown = bench.submit(f"@{tuned.id}", "train", hyperparams={"steps_per_cycle": 1, "output_name": "big"})
    small = bench.submit(f"@{grown.id}", "contract", hyperparams={"eval_dataset_id": "rows"})
    bench.supervisor.tick()
    assert [bench.job(job).fence for job in (tuned, grown, small)] == [1, 0, 0]
    assert bench.job(small).hold == f"after: waits for {grown.name} (queued)"
    bench.until(small, states.COMPLETED)
    done = [bench.job(job) for job in (tuned, grown, small)]
    assert [job.state for job in done] == [states.COMPLETED] * 3
    assert [job.source_model_id for job in done[1:]] == [job.output_model_id for job in done[:-1]]
    assert all(later.started_at >= earlier.finished_at for earlier, later in pairwise(done))
    (order,) = bench.orders(grown)
    assert (order.model_path, order.hyperparams) == (bench.orders(tuned)[0].output_path, done[1].hyperparams)
    assert 0 < order.hyperparams["growth_ratio"] <= 0.5
    assert done[1].plan is not None
    (order,) = bench.orders(small)
    assert (order.model_name, order.dataset_name) == ("big", "rows")
    parents = bench.service.lineages(bench.service.models())[done[2].output_model_id or ""].parents
    assert [one.type for one in parents] == ["train", "finetune", None]


def test_a_contract_job_that_reports_on_nothing_is_given_no_dataset(bench: Bench) -> None:
    first = bench.submit(hyperparams={"steps": 1})
    job = bench.submit(f"@{first.id}", "contract")
    bench.until(job, states.COMPLETED)
    (order,) = bench.orders(job)
    assert (order.dataset_name, order.dataset_path, order.dataset_sha256, order.cache_path) == ("", "", "", "")


def test_a_job_waits_while_the_one_before_it_is_cancelled_and_goes_on_when_that_is_retried(bench: Bench) -> None:
    first = bench.submit(hyperparams={"steps": 1})
    second = bench.submit(f"@{first.id}", hyperparams={"steps": 1})
    bench.service.cancel(first.id)
    third = bench.submit(hyperparams={"steps": 1})
    bench.until(third, states.COMPLETED)
    assert bench.job(second).fence == 0
    assert "retry it" in (bench.job(second).hold or "")
    bench.service.retry(first.id)
    assert bench.until(second, states.COMPLETED).hold is None


def test_runs_that_wait_for_one_that_was_cancelled_keep_nobody_busy(bench: Bench) -> None:
    first = bench.submit()
    second = bench.submit(f"@{first.id}")
    bench.submit(f"@{second.id}")
    assert bench.supervisor.busy()
    bench.service.cancel(first.id)
    assert not bench.supervisor.busy()
    bench.service.retry(first.id)
    assert bench.supervisor.busy()


def test_what_the_model_of_the_job_before_rules_out_fails_the_job_in_the_words_of_a_submit(odd: Bench) -> None:
    first = odd.submit(hyperparams={"steps": 1})
    grown = odd.submit(f"@{first.id}", "train")
    failed = odd.until(grown, states.FAILED)
    assert "a model of the type 'gpt2' cannot be grown yet" in (failed.error or "")
    assert (failed.fence, failed.hold) == (0, None)
    assert odd.service.events(grown.id)[-1].payload["error"] == failed.error


def test_a_job_whose_predecessor_was_deleted_fails_and_says_so_unless_its_model_is_there(bench: Bench) -> None:
    first = bench.submit(hyperparams={"steps": 1})
    orphan = bench.submit(f"@{first.id}", hyperparams={"steps": 1})
    with bench.service.store.write() as db:
        jobs.delete(db, first.id)  # as one would do by hand, past the service
    assert "was deleted before it was completed" in (bench.until(orphan, states.FAILED).error or "")
    made = bench.submit(hyperparams={"steps": 1})
    heir = bench.submit(f"@{made.id}", hyperparams={"steps": 1})
    bench.until(made, states.COMPLETED)
    with bench.service.store.write() as db:
        jobs.delete(db, made.id)
    assert bench.until(heir, states.COMPLETED).source_model_id == chains.output_id(made.id)


def test_nobody_looks_at_a_queue_in_which_all_wait_for_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench.submit()
    for _ in range(3):
        bench.submit(f"@{first.id}")
    bench.service.cancel(first.id)
    asked: list[int] = []
    monkeypatch.setattr("engine.running.supervisor.jobs.next_queued", lambda *_, **__: asked.append(1) or [])
    bench.supervisor.tick()
    assert asked == []
