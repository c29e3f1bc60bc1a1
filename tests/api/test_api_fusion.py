"""Dialect A: the shape and the status of every route's answer."""

from __future__ import annotations

import json
import re
import threading
import uuid
from pathlib import Path
from typing import get_args

import httpx
import pytest

from engine.service import Service
from fusion_tui.api.fusion import answers
from store import jobs, states, telemetry
from tests.api.conftest import BASE, DATA

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
UNKNOWN = str(uuid.UUID(int=99))
JOB_FIELDS = {
    *("id", "type", "status", "retries", "last_checkpoint_step", "output_model_id"),
    *("created_at", "started_at", "finished_at", "hyperparams", "base_model_id", "source_model_id", "dataset_id"),
    *("progress", "eta_s", "step", "total_steps", "name", "tags", "notes", "stop_requested", "plan", "after"),
    *("save_requested", "delete_requested", "checkpoint_id"),
    *("more_dataset_ids", "project_id"),
}
# Of a result, beside the fields of every type.
GROWN_OR_CONTRACTED = (
    *("ppl_after_growth", "self_ppl_baseline", "self_ppl_after_growth", "self_ppl_final", "tokens_trained", "logit_kl"),
    *("argmax_agreement", "blocks_added", "neurons_added", "ungrown_ppl_final", "ungrown_self_ppl_final", "layout"),
    *("param_ratio", "layers", "eval_ppl_baseline", "eval_ppl_final", "healed_steps"),
    *("ungrown_training_type", "ungrown_lr", "ungrown_seconds"),
)


def move(service: Service, job_id: str, *path: str, **columns) -> None:
    """Take a job through these states as the supervisor does."""
    with service.store.write() as db:
        for state in path:
            assert jobs.transition(db, job_id, state, fence=0, now=100.0, **(columns if state == path[-1] else {}))


def test_the_statuses_of_the_dialect_are_the_states_of_the_store():
    assert set(get_args(answers.Status)) == set(states.ALL)


def test_a_posted_job_is_created_with_every_field(http, payload):
    answer = http.post("/jobs", json=payload(name="first", tags=["a"], notes="why"))
    job = answer.json()
    assert answer.status_code == 201
    assert set(job) == JOB_FIELDS
    assert job["status"] == "queued"
    assert job["hyperparams"]["lora_rank"] == 32
    assert job["hyperparams"]["output_name"] == f"model-{job['id'][:8]}"
    assert (job["name"], job["tags"], job["notes"], job["total_steps"]) == ("first", ["a"], "why", 10)
    assert job["progress"] == 0.0
    assert job["stop_requested"] is False
    assert TIME.fullmatch(job["created_at"])
    assert job["started_at"] is job["finished_at"] is job["output_model_id"] is job["eta_s"] is None


def test_a_replay_answers_200_and_the_same_job(http, payload):
    request = payload()
    first = http.post("/jobs", json=request)
    again = http.post("/api/jobs", json=dict(reversed(request.items())))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


def test_an_idempotency_key_with_another_payload_is_a_conflict(http, payload):
    request = payload()
    http.post("/jobs", json=request)
    answer = http.post("/jobs", json={**request, "notes": "other"})
    assert answer.status_code == 409
    assert request["idempotency_key"] in answer.json()["detail"]


def test_sixteen_threads_with_one_key_make_one_job(http, service, payload):
    request = payload()
    before = len(service.jobs())
    start = threading.Barrier(16)
    answers: list[httpx.Response] = []

    def post() -> None:
        with httpx.Client(base_url=http.base_url, headers=http.headers, trust_env=False, timeout=30) as client:
            start.wait()
            answers.append(client.post("/jobs", json=request))

    threads = [threading.Thread(target=post) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] * 15 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(service.jobs()) == before + 1


@pytest.mark.parametrize("field", ["base_model_id", "dataset_id"])
def test_a_job_on_an_unknown_model_or_dataset_is_refused_with_400(http, payload, field):
    answer = http.post("/jobs", json=payload(**{field: UNKNOWN}))
    assert answer.status_code == 400
    assert UNKNOWN in answer.json()["detail"]


def test_a_contract_job_takes_no_dataset(http, payload):
    answer = http.post("/jobs", json=payload(type="contract", hyperparams={}))
    (fault,) = answer.json()["detail"]
    assert (answer.status_code, fault["loc"]) == (422, ["body", "dataset_id"])
    request = payload(type="contract", hyperparams={"source_model_id": BASE.id, "eval_dataset_id": "rows"})
    made = http.post("/jobs", json={key: request[key] for key in ("type", "idempotency_key", "hyperparams")})
    job = made.json()
    assert (made.status_code, job["type"], job["dataset_id"]) == (201, "contract", None)
    assert (job["source_model_id"], job["base_model_id"], job["total_steps"]) == (BASE.id, None, 0)
    assert job["hyperparams"]["eval_dataset_id"] == DATA.id


def test_a_job_tells_which_one_it_starts_after(http, payload, job_id):
    assert http.get(f"/jobs/{job_id}").json()["after"] is None
    growing = http.post("/jobs", json=payload(type="train", base_model_id=f"@{job_id}", hyperparams={})).json()
    assert (growing["after"], growing["base_model_id"], growing["total_steps"]) == (job_id, None, 6000)
    kinds = [event["kind"] for event in http.get(f"/jobs/{growing['id']}/events").json()]
    assert kinds == ["state", "hold"]
    assert http.delete(f"/jobs/{job_id}").status_code == 409
    http.post(f"/jobs/{job_id}/cancel")
    refused = http.delete(f"/jobs/{job_id}")
    assert refused.status_code == 409
    assert growing["name"] in refused.json()["detail"]
    answer = http.post("/jobs", json=payload(after=job_id))
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "after"])


def test_an_output_name_that_is_taken_is_refused(http, payload):
    answer = http.post("/jobs", json=payload(hyperparams={"output_name": "mine"}))
    (fault,) = answer.json()["detail"]
    assert (answer.status_code, fault["loc"]) == (422, ["body", "hyperparams", "output_name"])


def test_the_document_describes_each_type_of_request(http):
    document = http.get("/openapi.json").json()
    for path in ("/jobs", "/jobs/plan", "/api/jobs"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["discriminator"]["mapping"]) == {"train", "finetune", "contract"}
        assert [one["$ref"] for one in schema["oneOf"]] == list(schema["discriminator"]["mapping"].values())
    schemas = document["components"]["schemas"]
    for name, setting in (("Train", "growth_ratio"), ("Finetune", "lora_rank"), ("Contract", "layout")):
        assert schemas[f"{name}Request"]["properties"]["type"]["const"] == name.lower()
        assert setting in schemas[f"{name}Hyperparams"]["properties"]


def test_every_fault_of_a_job_is_listed_with_its_place(http, payload):
    answer = http.post("/jobs", json=payload(hyperparams={"steps": 0, "lora_rnk": 8}, surprise=1))
    faults = {tuple(fault["loc"]): fault for fault in answer.json()["detail"]}
    assert answer.status_code == 422
    assert set(faults) == {("body", "hyperparams", "steps"), ("body", "hyperparams", "lora_rnk"), ("body", "surprise")}
    assert "lora_rank" in faults["body", "hyperparams", "lora_rnk"]["msg"]
    assert all(set(fault) == {"loc", "msg", "type"} for fault in faults.values())


@pytest.mark.parametrize("mount", ["", "/api"])
def test_jobs_are_listed_newest_first_and_paged(http, payload, mount):
    made = [http.post("/jobs", json=payload()).json()["id"] for _ in range(3)]
    everything = http.get(f"{mount}/jobs").json()
    assert [job["id"] for job in everything[:3]] == made[::-1]
    page = http.get(f"{mount}/jobs", params={"limit": 2, "offset": 1}).json()
    assert page == everything[1:3]


def test_jobs_are_filtered_by_status(http, service, job_id):
    move(service, job_id, states.PROVISIONING)
    assert [job["id"] for job in http.get("/jobs?status=provisioning").json()] == [job_id]
    assert http.get("/jobs?status=uploading").json() == []
    move(service, job_id, states.FAILED, error="lost")


@pytest.mark.parametrize("query", ["status=asleep", "limit=0", "limit=x", "offset=-1", f"offset={2**63}"])
def test_a_wrong_query_is_refused_with_its_place(http, query):
    answer = http.get(f"/jobs?{query}")
    (fault,) = answer.json()["detail"]
    assert answer.status_code == 422
    assert fault["loc"] == ["query", query.partition("=")[0]]


def test_a_job_shows_its_error_only_when_it_failed(http, service, job_id):
    assert "error" not in http.get(f"/jobs/{job_id}").json()
    move(service, job_id, states.PROVISIONING, states.FAILED, error="out of memory", finished_at=100.0)
    job = http.get(f"/jobs/{job_id}").json()
    assert (job["status"], job["error"]) == ("failed", "out of memory")
    assert job["finished_at"] == "1970-01-01T00:01:40.000Z"


def test_metrics_hold_the_points_strictly_newer_than_a_step(http, service, job_id):
    assert http.get(f"/jobs/{job_id}/metrics").json() == {"job_id": job_id, "count": 0, "latest_step": -1, "points": []}
    point = telemetry.Point(0, "train", 10.5, loss=2.5, lr=1e-4, throughput=9.0, vram_gb=1.0, tokens=7, step_s=0.5)
    later = [telemetry.Point(1, "train", 11.0, loss=float("inf")), telemetry.Point(2, "eval", 12.0, loss=2.0)]
    with service.store.write() as db:
        telemetry.add_points(db, job_id, 1, [point, *later])
    whole = http.get(f"/jobs/{job_id}/metrics").json()
    assert (whole["count"], whole["latest_step"]) == (3, 2)
    assert whole["points"][0] == {
        **{"ts": "1970-01-01T00:00:10.500Z", "step": 0, "cycle": 0, "phase": "train", "loss": 2.5, "lr": 1e-4},
        **{"throughput": 9.0, "vram_gb": 1.0, "grad_norm": None, "tokens": 7, "epoch": None, "step_s": 0.5},
    }
    assert whole["points"][1]["loss"] is None
    assert [p["step"] for p in http.get(f"/jobs/{job_id}/metrics?since_step=1").json()["points"]] == [2]
    nothing_new = http.get(f"/jobs/{job_id}/metrics?since_step=2").json()
    assert (nothing_new["count"], nothing_new["latest_step"]) == (0, 2)


def test_who_asks_for_what_is_newer_misses_no_step_of_the_training_behind_another_phase(http, service, job_id):
    def since(step):
        answer = http.get(f"/jobs/{job_id}/metrics?since_step={step}").json()
        return answer["latest_step"], [(point["step"], point["phase"]) for point in answer["points"]]

    with service.store.write() as db:
        telemetry.add_points(db, job_id, 1, [telemetry.Point(120, "ungrown", 1.0, loss=1.0)])
    latest, points = since(-1)
    assert (latest, points) == (-1, [(120, "ungrown")])
    with service.store.write() as db:
        telemetry.add_points(db, job_id, 1, [telemetry.Point(step, "train", 2.0, loss=1.0) for step in (1, 2)])
    assert since(latest) == (2, [(1, "train"), (2, "train"), (120, "ungrown")])
    assert since(1) == (2, [(2, "train")])


def test_logs_hold_the_lines_newer_than_a_number(http, service, job_id):
    assert http.get(f"/jobs/{job_id}/logs").json() == {"job_id": job_id, "latest_seq": 0, "lines": []}
    with service.store.write() as db:
        telemetry.add_log_lines(db, job_id, [(1.0, "stdout", "one"), (2.0, "stderr", "two \x1b[31m")])
    logs = http.get(f"/jobs/{job_id}/logs?since=1").json()
    line = {"seq": 2, "ts": "1970-01-01T00:00:02.000Z", "stream": "stderr", "text": "two \x1b[31m"}
    assert logs == {"job_id": job_id, "latest_seq": 2, "lines": [line]}
    assert http.get(f"/jobs/{job_id}/logs?since=9").json() == {"job_id": job_id, "latest_seq": 2, "lines": []}


def test_events_tell_every_change_of_state_oldest_first(http, service, job_id):
    move(service, job_id, states.PROVISIONING, states.FAILED)
    events = http.get(f"/jobs/{job_id}/events").json()
    assert [event["payload"]["to"] for event in events] == ["queued", "provisioning", "failed"]
    assert all(set(event) == {"ts", "kind", "payload"} and event["kind"] == "state" for event in events)
    assert events[1]["ts"] == "1970-01-01T00:01:40.000Z"


def test_a_result_is_404_until_it_exists_and_then_costs_what_the_user_said(http, service, job_id):
    answer = http.get(f"/jobs/{job_id}/result")
    assert answer.status_code == 404
    assert "no result yet" in answer.json()["detail"]
    with service.store.write() as db:
        telemetry.set_result(db, job_id, {"gpu_seconds": 1800.0, "loss_final": 1.5, "params_after": 12}, now=1.0)
    assert http.get(f"/jobs/{job_id}/result").json() == {
        **{"job_id": job_id, "ppl_baseline": None, "ppl_final": None, "ppl_delta_pct": None, "loss_final": 1.5},
        **{"params_before": None, "params_after": 12, "params_delta": None, "function_preservation": None},
        **{"gpu_seconds": 1800.0, "tokens_processed": None, "cost_usd": 1.0},
        **dict.fromkeys(("steps", "skipped_steps", "memory_planned_bytes", "memory_measured_bytes")),
        **dict.fromkeys(("rows_trained", "rows_held_out", "truncated_rows", "dropped_rows")),
        **dict.fromkeys(("sample_prompt", "sample_before", "sample_after")),
        **dict.fromkeys(GROWN_OR_CONTRACTED),
    }


def test_a_result_keeps_what_growing_or_contracting_reports(http, service, job_id):
    numbers = dict.fromkeys(GROWN_OR_CONTRACTED, 1) | {
        **{"layout": "depth", "layers": [1, 4], "ppl_after_growth": float("inf"), "ungrown_training_type": "full"},
    }
    with service.store.write() as db:
        telemetry.set_result(db, job_id, numbers, now=1.0)
    body = http.get(f"/jobs/{job_id}/result").json()
    assert {name: body[name] for name in GROWN_OR_CONTRACTED} == numbers | {"ppl_after_growth": None}


def test_checkpoints_are_listed_oldest_first(http, service, job_id):
    with service.store.write() as db:
        for step in (20, 10):
            row = telemetry.Checkpoint(
                *(str(uuid.uuid4()), job_id, step, 0.5, 1.0, None, 1e-4, f"/c/{step}", 9, "published", 3.0)
            )
            telemetry.add_checkpoint(db, row)
    found = http.get(f"/jobs/{job_id}/checkpoints").json()
    assert [checkpoint["step"] for checkpoint in found] == [10, 20]
    assert set(found[0]) == {
        *("id", "job_id", "step", "epoch", "loss", "eval_loss", "lr", "path", "bytes", "status", "created_at", "pinned")
    }


def test_a_queued_job_is_cancelled_at_once_and_can_be_retried_and_deleted(http, job_id):
    assert http.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert http.post(f"/jobs/{job_id}/cancel").status_code == 409
    assert http.post(f"/jobs/{job_id}/retry").json()["status"] == "queued"
    assert http.post(f"/jobs/{job_id}/retry").status_code == 409
    assert http.delete(f"/jobs/{job_id}").status_code == 409
    http.post(f"/jobs/{job_id}/cancel")
    gone = http.delete(f"/jobs/{job_id}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert http.get(f"/jobs/{job_id}").status_code == 404


def test_a_running_job_is_asked_to_stop(http, service, job_id):
    move(service, job_id, states.PROVISIONING)
    job = http.post(f"/jobs/{job_id}/cancel").json()
    assert (job["status"], job["stop_requested"]) == ("provisioning", True)
    move(service, job_id, states.CANCELLED)


ID_ROUTES = [
    *[("GET", f"/jobs/{{id}}{part}") for part in ("", "/metrics", "/logs", "/events", "/result", "/checkpoints")],
    *[("POST", "/jobs/{id}/cancel"), ("POST", "/jobs/{id}/retry"), ("DELETE", "/jobs/{id}"), ("GET", "/models/{id}")],
]


@pytest.mark.parametrize(("method", "path"), ID_ROUTES)
@pytest.mark.parametrize("wrong", [UNKNOWN, "x", "%2e%2e", "1' OR '1'='1", UNKNOWN[:8], UNKNOWN + "0", "%00", "é" * 36])
def test_an_id_that_is_unknown_or_no_uuid_is_404(http, method, path, wrong):
    answer = http.request(method, path.replace("{id}", wrong))
    assert answer.status_code == 404
    assert isinstance(answer.json()["detail"], str)


def test_an_id_in_capitals_means_the_same_job(http, job_id):
    assert http.get(f"/jobs/{job_id.upper()}").json()["id"] == job_id


def test_the_catalogue_is_listed_in_the_dialects_fields(http):
    (base,) = [entry for entry in http.get("/base-models").json() if entry["name"] == "tiny"]
    id_of = {name: str(uuid.UUID(int=number)) for number, name in enumerate(("base", "data", "model", "job"), start=1)}
    assert base == {
        **{"id": id_of["base"], "family": "llama", "name": "tiny"},
        **{"version": 1, "params": 1234, "precision": "bf16"},
    }
    parent = {"id": id_of["base"], "name": "tiny", "job_id": None, "type": None}
    (model,) = http.get("/models").json()
    assert model == {
        **{"id": id_of["model"], "name": "mine", "version": 1, "params": 1234, "base_model_id": id_of["base"]},
        **{
            "lineage": {"job_id": id_of["job"], "type": None, "parent": parent, "parents": [parent], "checkpoint": None}
        },
        **{"status": "ready", "created_at": "1970-01-01T00:00:03.000Z"},
    }
    assert http.get(f"/api/models/{model['id']}").json() == model
    assert http.get(f"/models/{base['id']}").status_code == 404
    (data,) = [entry for entry in http.get("/datasets").json() if entry["name"] == "rows"]
    assert data == {
        **{"id": id_of["data"], "name": "rows", "version": 1, "shard_count": 1, "bytes": 99, "status": "ready"},
        **{"created_at": "1970-01-01T00:00:02.250Z", "rows": 3, "format": "text", "facts": {}},
    }


def test_a_dataset_is_registered_by_its_path_and_versioned(http, tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(4)))
    answers = [http.post("/datasets", json={"name": "notes", "path": str(file)}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert [answer.json()["version"] for answer in answers] == [1, 2]
    assert (answers[0].json()["rows"], answers[0].json()["status"]) == (4, "ready")
    assert answers[1].json() in http.get("/datasets").json()


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"name": "a"}, "path"),
        ({"path": "/x"}, "name"),
        ({"name": "a", "path": "x.jsonl"}, "path"),
        ({"name": "a", "path": "~root/x"}, "path"),
        ({"name": "../a", "path": "/x"}, "name"),
        ({"name": "a", "path": "/x", "mode": 1}, "mode"),
        ({"name": 1, "path": "/x"}, "name"),
    ],
)
def test_a_dataset_request_that_does_not_fit_is_refused_with_its_place(http, body, place):
    answer = http.post("/datasets", json=body)
    assert answer.status_code == 422
    assert ["body", place] in [fault["loc"] for fault in answer.json()["detail"]]


@pytest.mark.parametrize("path", ["/nowhere/x.jsonl", "/", "/dev/zero", "/x\0y"])
def test_a_path_that_is_no_file_of_rows_is_refused_with_400(http, path):
    assert http.post("/datasets", json={"name": "a", "path": path}).status_code == 400


def test_keys_are_listed_without_their_secrets(http, service):
    answer = http.get("/keys")
    first = next(key for key in answer.json() if key["name"] == "first key")
    assert set(first) == {"id", "name", "prefix", "scopes", "created_at"}
    assert set(first["scopes"]) == {"train", "read", "datasets", "models", "billing"}
    assert service.token() not in answer.text


@pytest.mark.parametrize("path", ["/health", "/api/health"])
def test_health_needs_no_key(bare, path):
    health = bare.get(path).json()
    assert set(health) == {"status", "version", "store", "workers"}
    assert (health["status"], health["store"]) == ("ok", "ok")
