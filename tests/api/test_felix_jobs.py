"""Dialect B: what is answered of jobs, whichever dialect made them, and what may be done to them."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import httpx
import pytest

from engine.service import Service
from fusion_tui.api.felix import statuses
from fusion_tui.api.felix.statuses import OF_STATE
from store import catalog, jobs, states, telemetry
from tests.api.conftest import BASE, DATA, TRAINED
from tests.api.felix import OURS, RECORD, UNKNOWN, move, submit

RUNNING = (states.PROVISIONING, states.STAGING, states.RUNNING)
COMPLETED = (*RUNNING, states.UPLOADING, states.COMPLETED)


@pytest.fixture
def complete(felix: httpx.Client, service: Service) -> str:
    """A job that was trained, as far as the store knows."""
    job_id = str(submit(felix, model_name="done")["id"])
    model = replace(TRAINED, id=str(uuid.uuid4()), name="done", version=0, job_id=job_id)
    with service.store.write() as db:
        catalog.add_model(db, model)
        telemetry.add_points(db, job_id, 0, [telemetry.Point(30, "train", 50.0, loss=1.5, epoch=10.0)])
        body = {"loss_final": 1.25, "ppl_final": math.exp(1.5), "eval_loss_best": 1.4, "gpu_seconds": 3.0}
        telemetry.set_result(db, job_id, body, now=60.0)
    move(service, job_id, *COMPLETED, output_model_id=model.id, finished_at=100.0, started_at=40.0, step=30)
    return job_id


def test_the_words_of_the_dialect_are_those_of_its_table():
    assert set(OF_STATE) == set(states.ALL)
    assert set(OF_STATE.values()) == set(get_args(statuses.Status)) - {"deployed"}
    requested, running = ("queued", "provisioning", "preempted"), ("staging", "running", "checkpointing", "uploading")
    assert set(statuses.states_of("requested")) == set(requested)
    assert set(statuses.states_of("running")) == set(running)


@pytest.mark.parametrize(
    ("path", "status", "ended"),
    [
        (RUNNING[:1], "requested", False),
        (RUNNING[:2], "running", False),
        (RUNNING, "running", False),
        ((*RUNNING, states.CHECKPOINTING), "running", False),
        ((*RUNNING, states.UPLOADING), "running", False),
        (COMPLETED, "complete", True),
        ((states.PROVISIONING, states.PREEMPTED), "requested", False),
        ((states.FAILED,), "failed", True),
        ((states.CANCELLED,), "cancelled", True),
    ],
)
def test_a_state_is_answered_in_the_dialects_word(felix, service, path, status, ended):
    job_id = submit(felix)["id"]
    move(service, job_id, *path)
    record = felix.get(f"/training-jobs/{job_id}").json()
    assert (record["status"], record["normalized_status"], record["is_terminal_status"]) == (status, status, ended)


def test_a_running_job_tells_how_far_it_is(felix, service):
    job_id = submit(felix)["id"]
    with service.store.write() as db:
        jobs.update(db, job_id, total_steps=40, step=10)
        points = [telemetry.Point(step, "train", 1.0, loss=2.0, epoch=step / 4) for step in (8, 10)]
        telemetry.add_points(db, job_id, 0, points)
    record = felix.get(f"/training-jobs/{job_id}").json()
    assert (record["progress_percent"], record["current_epoch"]) == (25.0, 3)
    with service.store.write() as db:
        telemetry.forget_after(db, job_id, 8)
    assert felix.get(f"/training-jobs/{job_id}").json()["current_epoch"] == 2


def test_a_complete_job_has_metrics_and_an_artifact(felix, complete):
    record = felix.get(f"/training-jobs/{complete}").json()
    assert set(record) == RECORD | OURS
    assert record["metrics"]["final_validation_loss"] == pytest.approx(1.5)
    losses = {"final_training_loss": 1.25, "best_validation_loss": 1.4}
    assert losses.items() <= record["metrics"].items()
    assert (record["artifact_ready"], record["progress_percent"], record["current_epoch"]) == (True, 100.0, 10)
    assert record["completed_at"] == "1970-01-01T00:01:40.000Z"


@pytest.mark.parametrize("strange", ["no number", True, None, [1.0], math.inf, -1.0])
def test_a_result_that_holds_no_number_is_answered_without(felix, service, complete, strange):
    with service.store.write() as db:
        names = ("loss_final", "ppl_final", "eval_loss_best")
        telemetry.set_result(db, complete, dict.fromkeys(names, strange), now=61.0)
        telemetry.add_points(db, complete, 0, [telemetry.Point(31, "train", 51.0, epoch=math.inf)])
    record = felix.get(f"/training-jobs/{complete}").json()
    assert record["metrics"]["final_validation_loss"] is None
    assert record["current_epoch"] is None
    assert felix.get("/trained-models").status_code == 200


def test_a_failed_job_tells_its_error(felix, service):
    job_id = submit(felix)["id"]
    move(service, job_id, states.PROVISIONING, states.FAILED, error="out of memory", finished_at=100.0)
    record = felix.get(f"/training-jobs/{job_id}").json()
    assert (record["error_message"], record["metrics"], record["artifact_ready"]) == ("out of memory", None, False)


def test_a_job_of_the_other_dialect_is_here_too_and_says_its_type(felix, http, payload):
    request_ = {"type": "contract", "idempotency_key": str(uuid.uuid4()), "source_model_id": BASE.id}
    contract = http.post("/jobs", json=request_).json()
    record = felix.get(f"/training-jobs/{contract['id']}").json()
    assert (record["type"], record["training_type"], record["training_algorithm"]) == ("contract", None, None)
    assert (record["datasets"], record["nr_epochs"], record["base_model"]) == ([], None, BASE.id)
    finetune = http.post("/jobs", json=payload(name="from A")).json()
    record = felix.get(f"/training-jobs/{finetune['id']}").json()
    assert (record["model_name"], record["type"], record["training_type"]) == ("from A", "finetune", "lora")
    assert record["datasets"] == [{"name": DATA.name, "version": 1}]


def test_a_job_of_this_dialect_is_in_the_other_too(felix, http):
    record = submit(felix, model_name="from B")
    job = http.get(f"/jobs/{record['id']}").json()
    assert (job["name"], job["type"], job["status"]) == ("from B", "finetune", "queued")
    assert http.get("/jobs?limit=1").json() == [job]


def test_a_dataset_that_was_removed_leaves_its_place(felix, service):
    with service.store.write() as db:
        gone = catalog.add_dataset(db, replace(DATA, id=str(uuid.uuid4()), name="leaving", sha256="1" * 64))
    record = submit(felix, datasets=[{"name": "leaving"}, {"name": DATA.name}])
    with service.store.write() as db:
        catalog.remove(db, gone)
    used = felix.get(f"/training-jobs/{record['id']}").json()["datasets"]
    assert used == [{"name": f"{gone.id[:8]} (removed)", "version": None}, {"name": DATA.name, "version": 1}]


def test_jobs_are_listed_newest_first_in_pages(felix):
    project = str(uuid.uuid4())
    made = [submit(felix, project_id=project)["id"] for _ in range(3)]
    page = felix.get("/training-jobs", params={"project_id": project, "limit": 2}).json()
    assert set(page) == {"success", "training_jobs", "count", "total", "has_more"}
    assert [job["id"] for job in page["training_jobs"]] == made[:0:-1]
    assert (page["success"], page["count"], page["total"], page["has_more"]) == (True, 2, 3, True)
    rest = felix.get("/training-jobs", params={"project_id": project, "limit": 2, "offset": 2}).json()
    assert [job["id"] for job in rest["training_jobs"]] == made[:1]
    assert (rest["count"], rest["total"], rest["has_more"]) == (1, 3, False)
    beyond = felix.get("/training-jobs", params={"project_id": project, "offset": 9}).json()
    assert (beyond["count"], beyond["total"], beyond["has_more"]) == (0, 3, False)
    assert set(page["training_jobs"][0]) == RECORD | OURS


def test_jobs_are_filtered_by_the_dialects_words(felix, service):
    project = str(uuid.uuid4())
    made = [submit(felix, project_id=project)["id"] for _ in range(4)]
    move(service, made[1], *RUNNING[:1])
    move(service, made[2], *RUNNING[:2])
    move(service, made[3], states.CANCELLED)

    def listed(status: str) -> set[str]:
        page = felix.get("/training-jobs", params={"project_id": project, "status": status}).json()
        assert page["count"] == page["total"] == len(page["training_jobs"])
        return {job["id"] for job in page["training_jobs"]}

    assert listed("requested") == set(made[:2])
    assert listed("running") == {made[2]}
    assert listed("cancelled") == {made[3]}
    assert listed("complete") == listed("deployed") == listed("failed") == set()


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "offset=-1", "status=queued", f"offset={2**63}"])
def test_bad_pagination_is_refused_with_422(felix, query):
    answer = felix.get(f"/training-jobs?{query}")
    (fault,) = answer.json()["detail"]
    assert (answer.status_code, fault["loc"]) == (422, ["query", query.partition("=")[0]])


def test_logs_have_a_level_a_source_and_an_id_of_their_own(felix, service):
    job_id = submit(felix)["id"]
    assert felix.get(f"/training-jobs/{job_id}/logs").json() == {"job_id": job_id, "logs": [], "total_logs": 0}
    lines = [(1.0, "train", "one"), (2.0, "warning", "two"), (3.0, "error", "three"), (4.0, "stdout", "four")]
    with service.store.write() as db:
        telemetry.add_log_lines(db, job_id, lines)
    answer = felix.get(f"/training-jobs/{job_id}/logs").json()
    assert answer["total_logs"] == 4
    first = answer["logs"][0]
    assert {key: first[key] for key in first if key != "id"} == {
        **{"job_id": job_id, "timestamp": "1970-01-01T00:00:01.000Z", "level": "info", "message": "one"},
        "source": "train",
    }
    told = [(line["level"], line["source"]) for line in answer["logs"]]
    assert told == [("info", "train"), ("warning", "train"), ("error", "train"), ("info", "stdout")]
    ids = [line["id"] for line in answer["logs"]]
    assert len({uuid.UUID(one) for one in ids}) == 4
    assert [line["id"] for line in felix.get(f"/training-jobs/{job_id}/logs").json()["logs"]] == ids


def events_of(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Yield the events of a stream: kind, data, id."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if line == "" and "data" in fields:
            yield fields.get("event", "message"), json.loads(fields["data"]), fields.get("id")
        fields = {**fields, name: value} if line else {}


@pytest.mark.parametrize(
    ("query", "headers"), [("?stream=true", {}), ("", {"Accept": "text/event-stream"}), ("?stream=1", {})]
)
def test_the_log_is_streamed_until_the_job_ends(felix, service, query, headers):
    job_id = submit(felix)["id"]

    def say(text: str) -> None:
        with service.store.write() as db:
            telemetry.add_log_lines(db, job_id, [(1.0, "train", text)])

    say("before")
    with felix.stream("GET", f"/training-jobs/{job_id}/logs{query}", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        found = events_of(response)
        assert next(found)[1]["message"] == "before"
        say("while")
        kind, line, number = next(found)
        assert (kind, line["message"], number) == ("message", "while", "2")
        say("last")
        move(service, job_id, states.CANCELLED)
        assert next(found)[1]["message"] == "last"
        assert list(found) == [("end", {"job_id": job_id, "status": "cancelled"}, None)]
    again = felix.get(f"/training-jobs/{job_id}/logs?stream=true", headers={"Last-Event-ID": "2"})
    assert again.text.count("data: ") == 2
    assert felix.get(f"/training-jobs/{job_id}/logs?stream=false", headers=headers).json()["total_logs"] == 3


def test_checkpoints_tell_which_is_the_best_and_which_the_last(felix, service, complete):
    rows = [(10, 1.9, "published"), (15, 1.2, "removed"), (20, 1.4, "published"), (30, 1.5, "published")]
    with service.store.write() as db:
        for step, loss, state in rows:
            values = {"step": step, "epoch": step / 3, "loss": 2.0, "eval_loss": loss, "lr": 1e-4, "state": state}
            where = {"id": str(uuid.uuid4()), "job_id": complete, "path": f"/p/{step}", "bytes": 5, "created_at": 7.0}
            telemetry.add_checkpoint(db, telemetry.Checkpoint(**values, **where))
    answer = felix.get(f"/training-jobs/{complete}/checkpoints").json()
    assert (answer["success"], answer["count"]) == (True, 3)
    first = answer["checkpoints"][0]
    assert set(first) == {
        *("id", "job_id", "epoch", "step", "training_loss", "validation_loss", "learning_rate", "checkpoint_path"),
        *("is_deployable", "is_best", "is_final", "created_at", "updated_at"),
    }
    assert (first["training_loss"], first["validation_loss"], first["checkpoint_path"]) == (2.0, 1.9, "/p/10")
    told = {one["step"]: (one["is_best"], one["is_final"]) for one in answer["checkpoints"]}
    assert told == {10: (False, False), 20: (True, False), 30: (False, True)}
    deploy = felix.post(f"/training-jobs/{complete}/checkpoints/{first['id']}/deploy")
    assert (deploy.status_code, deploy.json()["detail"][0]["type"]) == (422, "not_in_this_version")
    assert felix.post(f"/training-jobs/{complete}/checkpoints/{UNKNOWN}/deploy").status_code == 404


def test_a_queued_job_is_stopped_at_once_and_only_once(felix):
    job_id = submit(felix)["id"]
    answer = felix.post(f"/training-jobs/{job_id}/stop")
    assert answer.status_code == 200
    assert set(answer.json()) == {"success", "message", "job_id", "status"}
    assert (answer.json()["job_id"], answer.json()["status"]) == (job_id, "cancelled")
    assert felix.post(f"/training-jobs/{job_id}/stop").status_code == 409


def test_a_running_job_is_asked_to_stop(felix, http, service):
    job_id = submit(felix)["id"]
    move(service, job_id, *RUNNING)
    assert felix.post(f"/training-jobs/{job_id}/stop").json()["status"] == "running"
    assert http.get(f"/jobs/{job_id}").json()["stop_requested"] is True
    move(service, job_id, states.CANCELLED)


def test_a_deleted_job_is_gone_from_both_dialects_with_its_model(felix, http, complete):
    model_id = felix.get(f"/training-jobs/{complete}").json()["output_model_id"]
    answer = felix.delete(f"/training-jobs/{complete}")
    assert (answer.status_code, answer.json()["success"]) == (200, True)
    assert answer.json()["message"]
    assert felix.get(f"/training-jobs/{complete}").status_code == 404
    assert http.get(f"/jobs/{complete}").status_code == 404
    assert model_id


def test_a_job_that_runs_is_stopped_before_it_is_deleted(felix, http, service):
    job_id = submit(felix)["id"]
    move(service, job_id, *RUNNING)
    answer = felix.delete(f"/training-jobs/{job_id}")
    assert (answer.status_code, answer.json()["success"]) == (200, True)
    assert "stops" in answer.json()["message"]
    assert http.get(f"/jobs/{job_id}").json()["stop_requested"] is True


def test_a_download_has_an_address_for_an_hour(felix, complete):
    answer = felix.get(f"/training-jobs/{complete}/download").json()
    assert set(answer) == {"success", "job_id", "download_url", "expires_in_seconds", "file_name", "message"}
    assert (answer["success"], answer["job_id"], answer["expires_in_seconds"]) == (True, complete, 3600)
    assert answer["file_name"] == "done-weights.zip"
    assert answer["download_url"].startswith(str(felix.base_url).removesuffix("felix/"))


def test_there_is_no_download_before_the_job_is_complete(felix, service, complete):
    job_id = submit(felix)["id"]
    answer = felix.get(f"/training-jobs/{job_id}/download")
    assert (answer.status_code, "requested" in answer.json()["detail"]) == (409, True)
    service.remove_model(felix.get(f"/training-jobs/{complete}").json()["output_model_id"])
    answer = felix.get(f"/training-jobs/{complete}/download")
    assert (answer.status_code, "removed" in answer.json()["detail"]) == (409, True)
    assert felix.get(f"/training-jobs/{complete}").json()["artifact_ready"] is False


def test_trained_models_are_listed_under_two_names(felix, complete):
    submit(felix)
    answer = felix.get("/trained-models").json()
    assert set(answer) == {"success", "count", "models", "training_jobs"}
    assert answer["models"] == answer["training_jobs"]
    assert answer["count"] == len(answer["models"])
    newest = answer["models"][0]
    assert set(newest) == {"id", "job_id", "model_name", "base_model", "status", "metrics", "created_at"}
    assert (newest["job_id"], newest["model_name"], newest["status"]) == (complete, "done", "complete")
    assert newest["metrics"]["final_training_loss"] == 1.25
    assert {model["status"] for model in answer["models"]} == {"complete"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/logs"),
        ("GET", "/logs?stream=true"),
        ("GET", "/checkpoints"),
        ("POST", "/stop"),
        ("GET", "/download"),
        ("POST", f"/checkpoints/{UNKNOWN}/deploy"),
    ],
)
@pytest.mark.parametrize("job_id", [UNKNOWN, "1", "not-a-uuid"])
def test_an_unknown_job_is_answered_404(felix, method, path, job_id):
    answer = felix.request(method, f"/training-jobs/{job_id}{path}")
    assert (answer.status_code, set(answer.json())) == (404, {"detail"})
