"""Lines that are whole and yet not fit for the store: none raises, none keeps another out, each is counted."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import journal
from engine.journal import Record
from engine.service import Service
from store.attempts import Attempt
from tests.engine.conftest import request_for, reread, start
from tests.engine.running.test_ingest import a_whole_run, everything, losses, point, take, tell


@pytest.fixture
def attempt(service: Service) -> Attempt:
    return start(service, service.submit(request_for()).job.id, upto="provisioning")


WRONG_LINES: list[tuple[str, Any]] = [
    ("activity", {"text": None}),
    ("activity", {"text": ["a"]}),
    *(("activity", {"text": "a", "done": done}) for done in ("0.5", -0.1, 1.1, True, [0.5], float("nan"))),
    ("state", {"to": ["running"], "activity": ""}),
    ("log", {"stream": None, "text": "a"}),
    ("event", {"kind": None, "payload": {}}),
    ("event", {"kind": "oom", "payload": [[1, 2]]}),
    ("resume", {"step": 2**70}),
    ("resume", {"step": "0"}),
    ("checkpoint", {"path": "/c", "bytes": 2**70, "step": 1, "epoch": 0.5, "loss": 2.5, "eval_loss": 3.0, "lr": 1}),
    ("checkpoint", {"path": None, "bytes": 5, "step": 1, "epoch": 0.5, "loss": 2.5, "eval_loss": 3.0, "lr": 1}),
    ("checkpoint_gone", {"step": 1, "state": None}),
    ("model", {"id": None, "name": "out", "family": "llama", "params": 7, "precision": "bf16", "path": "/m"}),
    ("model", {"id": "m", "name": "out", "family": "llama", "params": 2**70, "precision": "bf16", "path": "/m"}),
    ("result", [["loss_final", 1.0]]),
    ("result", {"gpu_seconds": "long"}),
    ("memory", {"peak_bytes": 2**70, "phase": "train"}),
    ("end", {"outcome": "lost", "error": None, "cause": None}),
    ("end", {"outcome": "failed", "error": ["a"], "cause": None}),
]


@pytest.mark.parametrize(("kind", "data"), WRONG_LINES, ids=str)
def test_what_no_table_can_hold_of_a_line_keeps_no_other_out(
    service: Service, attempt: Attempt, kind: str, data: Any
) -> None:
    tell(attempt, point(1), ("state", {"to": "staging", "activity": "reading"}))
    take(service, attempt)
    before = everything(service)
    tell(attempt, point(2), (kind, data), point(3))
    assert take(service, attempt) == 3
    assert [step for step, *_ in losses(service, attempt)] == [1, 2, 3]
    after = everything(service)
    (event,) = after["events"][len(before["events"]) :]
    assert (event["kind"], event["payload"]) == ("journal_damaged", '{"lines": 1}')
    for table in ("log_lines", "results", "checkpoints", "models"):
        assert after[table] == before[table]
    assert reread(service, attempt.job_id).outcome is None
    assert service.job(attempt.job_id).activity == "reading"


def test_a_line_is_taken_whole_or_not_at_all(service: Service, attempt: Attempt) -> None:
    with service.store.write() as db:
        condition = "WHEN NEW.kind = 'checkpoint' BEGIN SELECT RAISE(ABORT, 'no'); END"
        db.execute(f"CREATE TRIGGER no BEFORE INSERT ON events {condition}")
    facts = {"bytes": 5, "epoch": 0.5, "loss": 2.5, "eval_loss": None, "lr": 1}
    tell(attempt, point(1), ("checkpoint", {"path": "/1", "step": 1, **facts}), point(2))
    take(service, attempt)
    assert service.checkpoints(attempt.job_id) == []
    assert service.job(attempt.job_id).last_checkpoint_step == 0
    assert [step for step, *_ in losses(service, attempt)] == [1, 2]


def test_half_a_surrogate_pair_reaches_no_reader(service: Service, attempt: Attempt) -> None:
    half = "a \ud800 b"
    entries = [
        ("activity", {"text": half}),
        ("event", {"kind": half, "payload": {half: [half]}}),
        ("result", {half: half}),
    ]
    tell(attempt, *entries)
    assert take(service, attempt) == 3
    assert service.job(attempt.job_id).activity == "a ? b"
    event = service.events(attempt.job_id)[-1]
    assert (event.kind, event.payload) == ("a ? b", {"a ? b": ["a ? b"]})
    assert (service.result(attempt.job_id) or {})["a ? b"] == "a ? b"


@pytest.mark.parametrize(
    "wrong",
    [
        {"seq": 2**70},
        {"seq": "3"},
        {"seq": None},
        {"ts": None},
        {"ts": float("nan")},
        {"ts": 2**70},
        {"kind": ["point"]},
    ],
    ids=str,
)
def test_a_line_with_something_else_around_its_data_keeps_no_other_out(
    service: Service, attempt: Attempt, wrong: dict[str, Any]
) -> None:
    lines = [Record(number, attempt.fence, 50.0, *point(number)) for number in (1, 2, 3)]
    lines[1] = lines[1]._replace(**wrong)
    (Path(attempt.directory) / "journal.jsonl").write_bytes(b"".join(journal.encode(line) for line in lines))
    assert take(service, attempt) == 3
    assert [step for step, *_ in losses(service, attempt)] == [1, 3]
    assert reread(service, attempt.job_id).journal_seq == 3
    assert "journal_damaged" in [event.kind for event in service.events(attempt.job_id)]


def test_a_line_of_endless_depth_keeps_no_other_out(service: Service, attempt: Attempt) -> None:
    deep = b'{"seq":2,"fence":1,"ts":50.0,"kind":"event","data":' + b"[" * 50_000 + b"]" * 50_000
    first, last = (journal.encode(Record(number, 1, 50.0, *point(number))) for number in (1, 3))
    path = Path(attempt.directory) / "journal.jsonl"
    path.write_bytes(first + deep + b',"crc":"%08x"}\n' % zlib.crc32(deep) + last)
    assert take(service, attempt) == 3
    assert [step for step, *_ in losses(service, attempt)] == [1, 3]


TEXTS = st.text(max_size=8) | st.sampled_from(["", "\ud800", "a\udfffb", "\x00", "train", "running", "completed"])
ODD = st.sampled_from([2**63 - 1, 2**63, 2**70, -(2**70), 10**400, float("nan"), float("inf"), 1e300])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | ODD
ANYTHING = st.recursive(SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXTS, part, max_size=3))
FORMS: dict[str, dict[str, Any]] = {
    **dict(a_whole_run(Path("/c"))),
    "point": point(5, tokens=7, eta_s=1.0)[1],
    "activity": {"text": "training"},
    "checkpoint_gone": {"step": 1, "state": "quarantined", "why": "bit"},
    "memory": {"peak_bytes": 5, "phase": "train"},
}


@st.composite
def lines(draw: st.DrawFn) -> tuple[str, Any]:
    """A line of any kind, of its form but for a value or two, or with any data at all."""
    kind = draw(st.sampled_from(sorted(FORMS)))
    if draw(st.integers(0, 4)) == 0:
        return kind, draw(ANYTHING)
    changed = draw(st.dictionaries(st.sampled_from(sorted(FORMS[kind])), ANYTHING, max_size=2))
    return kind, FORMS[kind] | changed


@given(st.lists(lines(), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_line_of_any_kind_raises_or_keeps_the_good_ones_around_it_out(
    service: Service, odd: list[tuple[str, Any]]
) -> None:
    attempt = start(service, service.submit(request_for()).job.id, upto="provisioning")
    # Log lines, for a point or a resume among the odd ones may rightly replace a point.
    good = [("log", {"stream": "good", "text": str(number)}) for number in range(len(odd) + 1)]
    tell(attempt, good[0], *(entry for pair in zip(odd, good[1:], strict=True) for entry in pair))
    assert take(service, attempt) == len(odd) + len(good)
    job_id = attempt.job_id
    assert [line.text for line in service.logs(job_id) if line.stream == "good"] == [entry["text"] for _, entry in good]
    read: list[Any] = [service.job(job_id), service.points(job_id), service.events(job_id), service.checkpoints(job_id)]
    read += [service.result(job_id), service.models(), reread(service, job_id)]
    json.dumps(read, default=vars, ensure_ascii=False).encode()  # as the API passes it on
    tell(attempt, point(10**6))
    assert take(service, attempt) == 1
    assert service.job(job_id).step == 10**6
