"""The one door: finding, cancelling, retrying and deleting jobs, and text that is fit to be shown."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Conflict, InvalidRequest, UnknownReference
from engine.paths import Home
from engine.service import Model, NotFound, Service
from engine.settings import Settings
from engine.text import clean_text
from store import catalog, jobs, telemetry
from tests.engine.conftest import Clock, request_for, start


def job_id_of(service: Service, **fields: Any) -> str:
    return service.submit(request_for(**fields)).job.id


def move(service: Service, job_id: str, *states: str) -> None:
    with service.store.write() as db:
        for state in states:
            assert jobs.transition(db, job_id, state, fence=jobs.get(db, job_id).fence, now=1.0)


def test_a_submitted_job_is_queued_with_its_settings_resolved(service: Service, clock: Clock) -> None:
    clock.now = 77.0
    submission = service.submit(request_for(hyperparams={"steps": 9}, tags=["a"], notes="n"))
    job = service.job(submission.job.id)
    assert submission.created
    assert (job.state, job.total_steps, job.created_at, job.tags, job.notes) == ("queued", 9, 77.0, ["a"], "n")
    assert job.hyperparams["output_name"] == f"model-{job.id[:8]}"
    assert job.hyperparams["lora_rank"] == 32
    assert job.base_model_id == service.model("tiny").id
    assert job.dataset_id == service.dataset("rows").id
    assert job.name == f"finetune-tiny-{job.id[:4]}"


@pytest.mark.parametrize("field", ["base_model_id", "dataset_id"])
def test_a_request_that_names_nothing_known_makes_no_job(service: Service, field: str) -> None:
    with pytest.raises(UnknownReference, match=r"No .* is called 'nonesuch'. Known: "):
        service.submit(request_for(**{field: "nonesuch"}))
    with pytest.raises(UnknownReference):
        service.validate(request_for(**{field: "nonesuch"}))
    with pytest.raises(InvalidRequest):
        service.validate(request_for(hyperparams={"steps": 0}))
    service.validate(request_for())
    assert service.jobs() == []


def test_a_job_is_found_by_id_by_prefix_and_by_name(service: Service) -> None:
    job = service.submit(request_for(name="my run")).job
    for reference in (job.id, job.id[:6], "my run"):
        assert service.find_job(reference).id == job.id


def test_a_reference_that_fits_several_jobs_or_none_is_refused(service: Service) -> None:
    twins = [job_id_of(service, name="twin") for _ in range(2)]
    with pytest.raises(NotFound, match="fits several jobs") as caught:
        service.find_job("twin")
    assert all(twin[:8] in str(caught.value) for twin in twins)
    for unknown in ("nobody", "", "%", "_" * 36):
        with pytest.raises(NotFound, match="No job is called"):
            service.find_job(unknown)


def test_an_exact_name_wins_over_a_prefix_of_an_id(service: Service) -> None:
    other = job_id_of(service)
    named = job_id_of(service, name=other[:5])
    assert service.find_job(other[:5]).id == named
    assert service.find_job(other[:6]).id == other


def test_a_queued_job_is_cancelled_at_once(service: Service, clock: Clock) -> None:
    job_id = job_id_of(service)
    clock.now = 2000.0
    job = service.cancel(job_id)
    assert (job.state, job.finished_at, job.stop_requested) == ("cancelled", 2000.0, False)
    with pytest.raises(Conflict, match="is cancelled already"):
        service.cancel(job_id)


def test_a_job_between_two_workers_is_cancelled_at_once(service: Service) -> None:
    job_id = job_id_of(service)
    move(service, job_id, "provisioning", "preempted")
    assert service.cancel(job_id).state == "cancelled"


@pytest.mark.parametrize("state", ["provisioning", "staging", "running", "uploading"])
def test_a_job_with_a_worker_is_asked_to_stop_once(service: Service, state: str) -> None:
    job_id = job_id_of(service)
    start(service, job_id, upto=state)
    assert service.cancel(job_id).stop_requested
    again = service.cancel(job_id)
    assert (again.state, again.stop_requested) == (state, True)
    assert [event.kind for event in service.events(job_id)].count("stop_requested") == 1


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_a_failed_or_cancelled_job_is_retried_with_nothing_left_of_its_end(service: Service, ending: str) -> None:
    job_id = job_id_of(service)
    start(service, job_id)
    service.cancel(job_id)
    with service.store.write() as db:
        columns = {"error": "e", "finished_at": 5.0, "not_before": 1e12, "last_checkpoint_step": 4}
        assert jobs.transition(db, job_id, ending, fence=1, now=5.0, **columns)
    job = service.retry(job_id)
    assert (job.state, job.error, job.finished_at, job.stop_requested) == ("queued", None, None, False)
    assert (job.not_before, job.last_checkpoint_step, job.fence) == (0.0, 4, 1)
    assert service.events(job_id)[-1].payload == {"from": ending, "to": "queued", "why": "retry"}


@pytest.mark.parametrize("path", [(), ("provisioning",), ("provisioning", "staging", "running")])
def test_a_job_that_has_not_ended_is_neither_retried_nor_deleted(service: Service, path: tuple[str, ...]) -> None:
    job_id = job_id_of(service)
    move(service, job_id, *path)
    with pytest.raises(Conflict, match="only failed and cancelled jobs can be retried"):
        service.retry(job_id)
    with pytest.raises(Conflict, match=f"Cancel it first: fusion-tui cancel {job_id[:8]}"):
        service.delete(job_id)
    assert service.job(job_id).state == (path[-1] if path else "queued")


def test_a_completed_job_is_neither_retried_nor_cancelled(service: Service) -> None:
    job_id = job_id_of(service)
    move(service, job_id, "provisioning", "staging", "running", "uploading", "completed")
    with pytest.raises(Conflict):
        service.retry(job_id)
    with pytest.raises(Conflict, match="is completed already"):
        service.cancel(job_id)


def test_a_deleted_job_takes_its_files_and_telemetry_and_leaves_the_others(service: Service) -> None:
    doomed, other = job_id_of(service), job_id_of(service)
    for job_id in (doomed, other):
        (service.home.attempt(job_id, 1)).mkdir(parents=True)
        with service.store.write() as db:
            telemetry.add_log_lines(db, job_id, [(1.0, "train", "x")])
    service.cancel(doomed)
    service.delete(doomed)
    assert [path.name for path in (service.home.root / "runs").iterdir()] == [other]
    assert service.logs(doomed) == []
    assert len(service.logs(other)) == 1
    for call in (service.job, service.cancel, service.retry, service.delete):
        with pytest.raises(NotFound):
            call(doomed)


def test_the_version_moves_when_another_connection_commits_and_only_then(service: Service) -> None:
    before = service.version()
    assert service.version() == before
    job_id_of(service)
    assert service.version() != before


def test_the_first_key_is_made_once_in_a_private_file_and_opens_the_door(service: Service) -> None:
    secret = service.token()
    assert service.token() == secret
    assert stat.S_IMODE(service.home.token.stat().st_mode) == 0o600
    key = service.authenticate(secret)
    assert key is not None
    assert "train" in key.scopes
    assert service.authenticate(secret + "x") is None
    assert len(service.keys()) == 1
    # A crash between file and row: the file's key counts, no second one is made.
    with service.store.write() as db:
        db.conn.execute("DELETE FROM keys")
    assert service.token() == secret
    assert service.authenticate(secret) is not None


def test_the_data_folder_is_private(service: Service) -> None:
    assert stat.S_IMODE(service.home.root.stat().st_mode) == 0o700


def test_a_removed_model_is_named_by_what_is_left_of_its_id(service: Service) -> None:
    entry = service.model("tiny")
    assert service.name_of(entry.id) == "tiny"
    service.remove_model("tiny")
    assert service.name_of(entry.id) == f"{entry.id[:8]} (removed)"
    assert service.name_of(None) == "–"


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("plain ünïcode 漢字 🙂", "plain ünïcode 漢字 🙂"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[Hcleared", "cleared"),
        ("\x1b[?25lhidden", "hidden"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;ZXZpbA==\x07clip", "clip"),
        ("over\rwritten\x08\x00\x7f", "overwritten"),
        ("\x9b31mc1\x9c\x85", "31mc1"),
        ("\x1b\x1b[31m", ""),
    ],
)
def test_control_sequences_are_stripped_from_text(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == clean


@given(st.text(st.sampled_from("\x1b[]0;31mA\x07\\\x9b\x9d\r\x00 \n?x")))
def test_no_text_keeps_a_control_character_however_it_is_nested(text: str) -> None:
    cleaned = clean_text(text)
    assert all(char in "\t\n" or (char >= " " and not "\x7f" <= char <= "\x9f") for char in cleaned)
    assert clean_text(cleaned) == cleaned


def test_base_and_own_models_of_one_name_share_their_versions(service: Service) -> None:
    model = service.model("tiny")
    own = Model(
        id="11111111-1111-4111-8111-111111111111",
        name="tiny",
        version=0,
        family="llama",
        params=1,
        precision="fp16",
        base_model_id=model.id,
        job_id=None,
        path="/somewhere",
        status="ready",
        created_at=5.0,
    )
    with service.store.write() as db:
        assert catalog.add_model(db, own).version == model.version + 1
    assert service.model("tiny").id == own.id


def test_a_data_folder_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    Service(Home(folder), config=Settings()).close()
    assert folder.stat().st_mode & 0o777 == 0o700
