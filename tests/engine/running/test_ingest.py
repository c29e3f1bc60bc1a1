"""From journal to store: each line counts once, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from engine import journal
from engine.journal import JournalWriter, Record
from engine.running import recover
from engine.running.ingest import ingest
from engine.service import Service
from store import StoreError, attempts, jobs
from store.attempts import Attempt
from tests.engine.conftest import request_for, reread, start


@pytest.fixture
def attempt(service: Service) -> Attempt:
    return start(service, service.submit(request_for()).job.id, upto="provisioning")


def writer_of(attempt: Attempt, *, fence: int | None = None) -> JournalWriter:
    return JournalWriter(Path(attempt.directory) / "journal.jsonl", fence or attempt.fence, clock=lambda: 50.0)


def point(step: int, loss: float = 1.0, phase: str = "train", **more: Any) -> tuple[str, dict[str, Any]]:
    return "point", {"step": step, "phase": phase, "ts": float(step), "loss": loss, **more}


def tell(attempt: Attempt, *entries: tuple[str, dict[str, Any]], fence: int | None = None) -> None:
    writer = writer_of(attempt, fence=fence)
    writer.append_all(entries)
    writer.close()


def take(service: Service, attempt: Attempt) -> int:
    """Ingest from the stored offset, as the supervisor does."""
    return ingest(service.store, reread(service, attempt.job_id))


def losses(service: Service, attempt: Attempt) -> list[tuple[int, str, float | None]]:
    return [(p.step, p.phase, p.loss) for p in service.points(attempt.job_id)]


def everything(service: Service) -> dict[str, list[Any]]:
    tables = ("jobs", "attempts", "events", "metrics", "log_lines", "results", "checkpoints", "models")
    return {table: list(service.store.read().query(f"SELECT * FROM {table}")) for table in tables}


def a_whole_run(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("state", {"to": "staging", "activity": "reading"}),
        ("state", {"to": "running", "activity": "training"}),
        ("resume", {"step": 0}),
        point(0, 3.0, "eval"),
        point(1, 2.5, eta_s=9.0, lr=1e-4),
        ("log", {"stream": "train", "text": "hello"}),
        ("event", {"kind": "oom", "payload": {"rung": 1}}),
        ("state", {"to": "checkpointing", "activity": "saving step 1"}),
        (
            "checkpoint",
            {"path": str(path), "bytes": 5, "step": 1, "epoch": 0.5, "loss": 2.5, "eval_loss": 3.0, "lr": 1},
        ),
        ("state", {"to": "running", "activity": "training"}),
        ("state", {"to": "uploading", "activity": "writing"}),
        ("model", {"id": "m" * 36, "name": "out", "family": "llama", "params": 7, "precision": "bf16", "path": "/m"}),
        ("result", {"loss_final": 2.5, "gpu_seconds": 3600.0}),
        ("end", {"outcome": "completed", "error": None, "cause": None}),
    ]


def test_every_kind_of_line_arrives_where_it_belongs(service: Service, attempt: Attempt, tmp_path: Path) -> None:
    tell(attempt, *a_whole_run(tmp_path))
    assert take(service, attempt) == 14
    job = service.job(attempt.job_id)
    assert (job.state, job.activity, job.step, job.eta_s) == ("uploading", "writing", 1, 9.0)
    assert (job.last_checkpoint_step, job.output_model_id) == (1, "m" * 36)
    assert losses(service, attempt) == [(0, "eval", 3.0), (1, "train", 2.5)]
    assert [line.text for line in service.logs(job.id)] == ["hello"]
    assert ("oom", {"rung": 1}) in [(event.kind, event.payload) for event in service.events(job.id)]
    (checkpoint,) = service.checkpoints(job.id)
    assert (checkpoint.step, checkpoint.path, checkpoint.state) == (1, str(tmp_path), "published")
    (model,) = service.models()
    assert (model.name, model.version, model.job_id) == ("out", 1, job.id)
    assert model.base_model_id == service.model("tiny").id
    result = service.result(job.id)
    assert result is not None
    assert (result["loss_final"], result["cost_usd"]) == (2.5, 2.0)
    ended = reread(service, job.id)
    assert (ended.outcome, ended.ended_at) == ("completed", None)
    assert ended.journal_offset == (Path(ended.directory) / "journal.jsonl").stat().st_size


def test_a_repeated_ingest_of_the_same_bytes_adds_nothing(service: Service, attempt: Attempt, tmp_path: Path) -> None:
    tell(attempt, *a_whole_run(tmp_path))
    stale = reread(service, attempt.job_id)
    take(service, attempt)
    before = everything(service)
    assert take(service, attempt) == 0
    # A second supervisor that still has the offset of before reads the same bytes and must not count them again.
    assert ingest(service.store, stale) == 0
    assert everything(service) == before


def test_an_error_in_the_middle_writes_nothing_and_the_next_try_everything_once(
    service: Service, attempt: Attempt, tmp_path: Path
) -> None:
    tell(attempt, *a_whole_run(tmp_path))
    before = everything(service)
    with service.store.write() as db:
        db.execute("ALTER TABLE results RENAME TO away")
    with pytest.raises(StoreError, match="no such table"):
        take(service, attempt)
    with service.store.write() as db:
        db.execute("ALTER TABLE away RENAME TO results")
    assert everything(service) == before
    take(service, attempt)
    assert len(service.points(attempt.job_id)) == 2
    assert len(service.logs(attempt.job_id)) == 1
    assert len(service.models()) == 1


def test_rows_and_offset_grow_together_line_by_line(service: Service, attempt: Attempt) -> None:
    for step in range(1, 6):
        tell(attempt, point(step))
        assert take(service, attempt) == 1
        assert [p.step for p in service.points(attempt.job_id)] == list(range(1, step + 1))
        assert reread(service, attempt.job_id).journal_seq == step


def test_a_torn_last_line_is_left_until_it_is_whole(service: Service, attempt: Attempt) -> None:
    tell(attempt, point(1), point(2))
    path = Path(attempt.directory) / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert take(service, attempt) == 1
    assert take(service, attempt) == 0
    path.write_bytes(whole)
    assert take(service, attempt) == 1
    assert [p.step for p in service.points(attempt.job_id)] == [1, 2]


def test_a_damaged_line_is_recorded_and_the_good_ones_around_it_are_taken(service: Service, attempt: Attempt) -> None:
    tell(attempt, point(1), point(2), point(3))
    path = Path(attempt.directory) / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step":2', b'"step":7'))
    assert take(service, attempt) == 3
    assert [p.step for p in service.points(attempt.job_id)] == [1, 3]
    events = [(e.kind, e.payload) for e in service.events(attempt.job_id) if e.kind != "state"]
    assert events == [("journal_damaged", {"lines": 1})]


def test_lines_under_another_fence_are_dropped(service: Service, attempt: Attempt) -> None:
    tell(attempt, point(1), fence=attempt.fence + 1)
    tell(attempt, point(2))
    tell(attempt, ("end", {"outcome": "completed", "error": None, "cause": None}), fence=attempt.fence + 1)
    assert take(service, attempt) == 3
    assert [p.step for p in service.points(attempt.job_id)] == [2]
    assert reread(service, attempt.job_id).outcome is None


def test_a_worker_whose_job_was_claimed_again_changes_nothing(service: Service, attempt: Attempt) -> None:
    with service.store.write() as db:
        jobs.transition(db, attempt.job_id, "preempted", fence=1, now=2.0)
        jobs.transition(db, attempt.job_id, "queued", fence=1, now=2.0)
    start(service, attempt.job_id, upto="running")
    before = service.job(attempt.job_id)
    tell(attempt, ("state", {"to": "uploading", "activity": "resurrected"}), point(99), ("result", {"loss_final": 0}))
    old = attempts.get(service.store.read(), attempt.job_id, attempt.fence)
    assert old is not None
    ingest(service.store, old)
    assert service.job(attempt.job_id) == before
    assert service.points(attempt.job_id) == []
    assert service.result(attempt.job_id) is None


def test_a_resume_drops_the_points_beyond_its_step_and_keeps_the_rest(service: Service, attempt: Attempt) -> None:
    first = [point(n, 1.0) for n in range(1, 6)]
    tell(attempt, *first, point(5, 4.0, "eval"), ("resume", {"step": 3}), point(4, 2.0))
    take(service, attempt)
    assert losses(service, attempt) == [(1, "train", 1.0), (2, "train", 1.0), (3, "train", 1.0), (4, "train", 2.0)]
    assert service.job(attempt.job_id).step == 4
    resumes = [event.payload for event in service.events(attempt.job_id) if event.kind == "resume"]
    assert resumes == [{"step": 3}]


def test_the_share_that_is_done_is_taken_from_activity_lines_until_steps_tell(
    service: Service, attempt: Attempt
) -> None:
    tell(attempt, ("activity", {"text": "growing", "done": 0.25, "eta_s": 30.0}))
    take(service, attempt)
    job = service.job(attempt.job_id)
    assert (job.activity, job.done, job.progress, job.eta_s) == ("growing", 0.25, 0.25, 30.0)
    tell(attempt, ("activity", {"text": "still growing"}))
    take(service, attempt)
    assert (service.job(job.id).activity, service.job(job.id).done) == ("still growing", 0.25)
    tell(attempt, ("activity", {"text": "almost", "done": 1, "eta_s": float("nan")}))
    take(service, attempt)
    assert (service.job(job.id).done, service.job(job.id).eta_s) == (1.0, None)
    tell(attempt, ("resume", {"step": 0}), point(1))
    take(service, attempt)
    assert (service.job(job.id).done, service.job(job.id).progress) == (None, 1 / job.total_steps)


def test_a_worker_that_is_lost_leaves_no_share_behind(service: Service, attempt: Attempt) -> None:
    tell(attempt, ("activity", {"text": "growing", "done": 0.9}))
    take(service, attempt)
    assert service.job(attempt.job_id).done == 0.9
    with service.store.write() as db:
        assert recover.settle(db, reread(service, attempt.job_id), 60.0) == "queued"
    assert service.job(attempt.job_id).done is None


def test_unknown_kinds_and_unknown_fields_of_a_later_version_are_ignored(service: Service, attempt: Attempt) -> None:
    tell(attempt, ("hologram", {"x": 1}), point(1, mood="good"), ("state", {"to": "no such state", "activity": "a"}))
    assert take(service, attempt) == 3
    assert losses(service, attempt) == [(1, "train", 1.0)]
    assert service.job(attempt.job_id).state == "provisioning"


@pytest.mark.parametrize("claimed", ["completed", "failed", "cancelled", "preempted", "queued", "provisioning"])
def test_what_follows_its_end_is_not_the_workers_to_say(service: Service, attempt: Attempt, claimed: str) -> None:
    states = [("state", {"to": to, "activity": ""}) for to in ("staging", "running", "uploading", claimed)]
    tell(attempt, *states, point(1))
    take(service, attempt)
    assert service.job(attempt.job_id).state == "uploading"
    assert "journal_damaged" in [event.kind for event in service.events(attempt.job_id)]


def test_a_loss_that_is_no_number_is_stored_as_none(service: Service, attempt: Attempt) -> None:
    tell(attempt, point(1, float("nan")))
    take(service, attempt)
    assert losses(service, attempt) == [(1, "train", None)]


def test_the_last_checkpoint_is_never_one_that_was_found_damaged(service: Service, attempt: Attempt) -> None:
    facts = {"bytes": 5, "epoch": 0.5, "loss": 2.5, "eval_loss": None, "lr": 1}
    tell(attempt, *(("checkpoint", {"path": f"/{step}", "step": step, **facts}) for step in (5, 10)))
    tell(attempt, ("checkpoint_gone", {"step": 10, "state": "quarantined", "why": "bit"}), ("resume", {"step": 5}))
    take(service, attempt)
    assert [(c.step, c.state) for c in service.checkpoints(attempt.job_id)] == [(5, "published"), (10, "quarantined")]
    assert "checkpoint_damaged" in [event.kind for event in service.events(attempt.job_id)]
    assert service.job(attempt.job_id).last_checkpoint_step == 5


def test_an_older_checkpoint_that_is_told_again_takes_the_job_no_step_back(service: Service, attempt: Attempt) -> None:
    facts = {"bytes": 5, "epoch": 0.5, "loss": 2.5, "eval_loss": None, "lr": 1}
    tell(attempt, *(("checkpoint", {"path": f"/{step}", "step": step, **facts}) for step in (5, 10, 5)))
    take(service, attempt)
    assert service.job(attempt.job_id).last_checkpoint_step == 10


def test_a_line_of_another_form_is_recorded_and_stops_no_other(service: Service, attempt: Attempt) -> None:
    tell(attempt, point(1), ("point", {"loss": 2.0}), ("checkpoint", {"step": 1}), point(2))
    take(service, attempt)
    assert [step for step, *_ in losses(service, attempt)] == [1, 2]
    (event,) = [event for event in service.events(attempt.job_id) if event.kind == "journal_damaged"]
    assert event.payload == {"lines": 2}


def test_half_a_surrogate_pair_in_a_log_line_is_stored_as_a_question_mark(service: Service, attempt: Attempt) -> None:
    tell(attempt, ("log", {"stream": "train", "text": "a \ud800 b"}))
    take(service, attempt)
    assert [line.text for line in service.logs(attempt.job_id)] == ["a ? b"]


WRONG_POINTS: list[dict[str, Any]] = [
    *({"loss": [1.0]}, {"loss": "1"}, {"lr": {"a": 1}}, {"tokens": 2**63}, {"tokens": True}, {"cycle": None}),
    *({"step": None}, {"step": "7"}, {"step": -1}, {"step": 2**70}, {"step": 2.0}),
    *({"phase": 3}, {"phase": "\ud800"}, {"ts": None}, {"ts": float("nan")}, {"ts": "now"}, {"ts": 2**70}),
]


@pytest.mark.parametrize("wrong", WRONG_POINTS, ids=str)
def test_a_point_that_no_table_can_hold_keeps_no_other_out(
    service: Service, attempt: Attempt, wrong: dict[str, Any]
) -> None:
    kind, data = point(2)
    tell(attempt, point(1), (kind, data | wrong), point(3))
    assert take(service, attempt) == 3
    assert [step for step, *_ in losses(service, attempt)] == [1, 3]
    assert "journal_damaged" in [event.kind for event in service.events(attempt.job_id)]


def test_a_journal_that_someone_cut_is_recorded_and_what_follows_is_taken_once(
    service: Service, attempt: Attempt
) -> None:
    tell(attempt, *(point(step) for step in range(1, 9)))
    take(service, attempt)
    path = Path(attempt.directory) / "journal.jsonl"
    os.truncate(path, path.stat().st_size // 2)
    assert take(service, attempt) == 1
    with path.open("ab") as file:
        file.writelines(journal.encode(Record(n, attempt.fence, 50.0, *point(n))) for n in (9, 10))
    while take(service, attempt):
        pass
    # The first new line was glued to what was left of the cut one; no good line is lost before or after.
    assert [step for step, *_ in losses(service, attempt)] == [*range(1, 11)]
    assert "journal_damaged" in [event.kind for event in service.events(attempt.job_id)]


def test_what_was_heard_last_is_remembered_and_ends_the_word_that_a_run_is_stalled(
    service: Service, attempt: Attempt
) -> None:
    with service.store.write() as db:
        jobs.update(db, attempt.job_id, hold="stalled: nothing heard for 6 min")
    tell(attempt, point(1))
    take(service, attempt)
    assert reread(service, attempt.job_id).heard_at == 50.0
    assert service.job(attempt.job_id).hold is None
