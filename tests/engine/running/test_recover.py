"""What becomes of a job when its worker is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.order import UNTOLD
from engine.running import recover
from engine.running.deaths import Death
from engine.service import Job, Service
from store import attempts, jobs
from tests.engine.conftest import request_for, reread, start


def end(
    service: Service,
    job_id: str,
    outcome: str | None,
    *,
    cause: str | None = None,
    error: str | None = None,
    now: float = 2000.0,
) -> str:
    """Let the newest attempt's worker say `outcome` (None: nothing) and be gone."""
    with service.store.write() as db:
        fence = jobs.get(db, job_id).fence
        if outcome:
            detail = json.dumps({"error": error, "cause": cause})
            attempts.update(db, job_id, fence, outcome=outcome, detail=detail)
    with service.store.write() as db:
        return recover.settle(db, reread(service, job_id), now)


def die(service: Service, job_id: str, now: float) -> Job:
    """Start the job from its last checkpoint and lose its worker."""
    start(service, job_id, start_step=service.job(job_id).last_checkpoint_step)
    end(service, job_id, None, now=now)
    return service.job(job_id)


@pytest.mark.parametrize("stop", [False, True], ids=["not stopped", "stop requested"])
@pytest.mark.parametrize(
    ("said", "state", "stopped", "retries"),
    [
        (("completed", None), "completed", "completed", 0),
        (("failed", "data"), "failed", "failed", 0),
        (("failed", "nan"), "failed", "failed", 0),
        ((None, None), "queued", "cancelled", 1),
        (("preempted", None), "queued", "cancelled", 1),
        (("preempted", "disk_full"), "queued", "cancelled", 0),
    ],
)
def test_the_next_state_follows_from_the_outcome_and_the_stop_request(
    service: Service, stop: bool, *, said: tuple[str | None, str | None], state: str, stopped: str, retries: int
) -> None:
    outcome, cause = said
    job_id = service.submit(request_for()).job.id
    start(service, job_id, upto="uploading" if outcome == "completed" else "running")
    if stop:
        service.cancel(job_id)
    wanted = stopped if stop else state
    assert end(service, job_id, outcome, cause=cause, error="said so" if cause else None) == wanted
    job = service.job(job_id)
    assert job.state == wanted
    assert job.retries == (retries if wanted == "queued" else 0)
    assert job.finished_at == (2000.0 if job.finished else None)
    assert (job.activity, job.eta_s) == ("", None)
    assert job.error == ("said so" if wanted == "failed" else None)
    assert job.hold == ("disk_full: said so" if cause == "disk_full" and not stop else None)
    closed = reread(service, job_id)
    ended = "cancelled" if wanted == "cancelled" else outcome or "lost"
    assert (closed.outcome, closed.ended_at) == (ended, 2000.0)
    states = [event.payload["to"] for event in service.events(job_id) if event.kind == "state"]
    assert states[-1] == wanted
    if wanted == "queued":
        assert states[-2] == "preempted"


@pytest.mark.parametrize("state", ["provisioning", "staging", "running", "checkpointing", "uploading"])
@pytest.mark.parametrize("outcome", ["completed", "failed", "preempted", None])
def test_no_job_is_left_looking_alive_when_its_worker_is_gone(
    service: Service, state: str, outcome: str | None
) -> None:
    # A line of the journal may be damaged, so the state can be behind what the worker did.
    job_id = service.submit(request_for()).job.id
    start(service, job_id)
    with service.store.write() as db:
        db.conn.execute("UPDATE jobs SET state = ? WHERE id = ?", [state, job_id])
    said = end(service, job_id, outcome)
    assert service.job(job_id).state == said
    assert said in ("queued", "completed", "failed")


def test_a_failure_without_a_reason_says_that(service: Service) -> None:
    job_id = service.submit(request_for()).job.id
    start(service, job_id)
    end(service, job_id, "failed")
    assert service.job(job_id).error == "The worker failed without saying why."


def test_five_deaths_in_a_row_at_one_checkpoint_fail_the_job_with_advice_and_wait_longer_each_time(
    service: Service,
) -> None:
    job_id = service.submit(request_for()).job.id
    waits = []
    for number in range(1, 5):
        job = die(service, job_id, now=100.0 * number)
        assert (job.state, job.retries) == ("queued", number)
        waits.append(job.not_before - 100.0 * number)
    assert waits == [0.0, 1.0, 3.0, 7.0]
    job = die(service, job_id, now=900.0)
    assert job.state == "failed"
    assert "died 5 times in a row with no new checkpoint, last at step 0" in (job.error or "")
    assert "lower seq_len, batch_size or save_steps" in (job.error or "")


def test_a_new_checkpoint_between_deaths_starts_the_count_and_the_wait_again(service: Service) -> None:
    job_id = service.submit(request_for()).job.id
    for number in range(1, 5):
        die(service, job_id, now=100.0 * number)
    start(service, job_id)
    with service.store.write() as db:
        jobs.update(db, job_id, last_checkpoint_step=50)
    end(service, job_id, None, now=600.0)
    job = service.job(job_id)
    assert (job.state, job.retries, job.not_before) == ("queued", 5, 600.0)
    for number in range(4):
        assert die(service, job_id, now=1000.0 + number).state == "queued"
    assert die(service, job_id, now=2000.0).state == "failed"


def test_a_job_that_its_user_retries_gets_all_its_tries_again(service: Service) -> None:
    job_id = service.submit(request_for()).job.id
    for number in range(5):
        die(service, job_id, now=100.0 * number)
    assert service.job(job_id).state == "failed"
    service.retry(job_id)
    assert die(service, job_id, now=5000.0).state == "queued"


def test_an_attempt_whose_worker_never_was_costs_no_retry(service: Service) -> None:
    job_id = service.submit(request_for()).job.id
    start(service, job_id, upto="provisioning")
    with service.store.write() as db:
        recover.abandon(db, reread(service, job_id), 10.0, wait=5.0)
    job = service.job(job_id)
    assert (job.state, job.retries, job.not_before, job.fence) == ("queued", 0, 15.0, 1)
    assert reread(service, job_id).outcome == "unstarted"


def test_an_attempt_whose_worker_never_was_ends_cancelled_when_a_stop_was_asked(service: Service) -> None:
    job_id = service.submit(request_for()).job.id
    start(service, job_id, upto="provisioning")
    service.cancel(job_id)
    with service.store.write() as db:
        recover.abandon(db, reread(service, job_id), 10.0)
    assert service.job(job_id).state == "cancelled"


def test_the_last_words_of_a_lost_worker_are_in_its_log(service: Service) -> None:
    job_id = service.submit(request_for()).job.id
    attempt = start(service, job_id)
    (Path(attempt.directory) / "stderr.log").write_bytes(b"x" * 9000 + b"\n\nSegmentation fault \xff\n")
    end(service, job_id, None)
    last = service.logs(job_id)[-1]
    assert (last.stream, last.text) == ("error", "Segmentation fault \ufffd")


def test_a_worker_that_could_not_write_its_journal_is_not_held_to_be_at_fault() -> None:
    death = Death(exit_code=UNTOLD)
    assert not death.own_fault
    assert "journal could not be written" in death.words
    assert Death(exit_code=1).own_fault


@pytest.mark.parametrize("said", [None, "preempted"])
def test_a_run_that_its_user_stops_is_cancelled_though_its_workers_died_before(
    service: Service, said: str | None
) -> None:
    job_id = service.submit(request_for()).job.id
    for death in range(recover.DEATHS_AT_MOST - 1):
        die(service, job_id, 2000.0 + 100 * death)
    start(service, job_id, start_step=0)
    with service.store.write() as db:
        jobs.update(db, job_id, hold="stalled: nothing heard for 6 min")
    service.cancel(job_id)
    assert end(service, job_id, said) == "cancelled"
    assert (service.job(job_id).error, service.job(job_id).hold) == (None, None)


def test_starts_that_a_full_disk_refuses_are_waited_out_and_never_add_up_to_a_failure(service: Service) -> None:
    """Of a quota or of inodes nobody sees beforehand that there is none."""
    job_id = service.submit(request_for()).job.id
    for _ in range(recover.STARTS_AT_MOST + 5):
        attempt = start(service, job_id, upto="provisioning")
        with service.store.write() as db:
            recover.abandon(
                db, attempt, 2000.0, wait=30.0, hold="disk_full: no worker could be started: Quota exceeded"
            )
    job = service.job(job_id)
    assert (job.state, job.retries, job.not_before) == ("queued", 0, 2030.0)
    assert (job.hold or "").startswith("disk_full: ")
