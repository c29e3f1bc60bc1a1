"""Dialect B: what a training job may be asked for with, and what becomes of it."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from typing import Any

import httpx
import pytest

from engine.jobs.hyperparams import FinetuneHyperparams
from engine.plans.recommend import ModelSize, learning_rate
from fusion_tui.api.felix import requests, translating
from store import catalog, telemetry, uploads
from tests.api.conftest import BASE, DATA, TRAINED
from tests.api.felix import OURS, RECORD, UNKNOWN, client, request, submit

EVERYTHING = {
    "model_name": "support-bot",
    "training_type": "lora",
    "training_algorithm": "sft",
    "nr_epochs": 3,
    "learning_rate": 0.0002,
    "batch_size": 2,
    "lora_r": 8,
    "lora_alpha": 24,
    "lora_dropout": 0.05,
    "validation_data_percentage": 0.1,
    "save_steps": 7,
    "seed": 9,
    "packing": True,
    "mask_history": True,
    "system_prompt": "Be brief.",
    "warmup_ratio": 0.1,
    "warmup_steps": 4,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.02,
    "early_stopping_patience": 0,
    "early_stopping_min_delta": 0.001,
    "gradient_accumulation_steps": 5,
    "project_id": "demo",
}


def settings_of(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """Return a job's settings as dialect A shows them."""
    job: dict[str, Any] = http.get(f"/jobs/{job_id}").json()
    return job["hyperparams"]


def faults(answer: httpx.Response) -> dict[tuple[Any, ...], dict[str, Any]]:
    assert answer.status_code == 422, answer.text
    found = {tuple(fault["loc"]): fault for fault in answer.json()["detail"]}
    assert all(set(fault) == {"loc", "msg", "type"} for fault in found.values())
    return found


def test_the_record_of_a_new_job_has_every_field(felix):
    record = submit(felix)
    assert set(record) == RECORD | OURS
    assert (record["status"], record["normalized_status"]) == ("requested", "requested")
    assert (record["training_type"], record["training_algorithm"]) == ("lora", "sft")
    assert (record["base_model"], record["nr_epochs"], type(record["nr_epochs"])) == (BASE.id, 10, int)
    assert record["datasets"] == [{"name": DATA.name, "version": 1}]
    assert (record["progress_percent"], record["is_terminal_status"], record["artifact_ready"]) == (0.0, False, False)
    nulls = ("metrics", "error_message", "current_epoch", "started_at", "completed_at", "project_id")
    assert [record[name] for name in nulls] == [None] * len(nulls)
    assert record["created_at"].endswith("Z")
    assert record["model_name"]
    assert record["is_deployable"] is False
    assert "not in this version" in record["deployability_reason"]


def test_what_is_left_out_has_the_documented_default(felix, http):
    settings = settings_of(http, submit(felix)["id"])
    assert {
        **{"training_type": "lora", "epochs": 10, "batch_size": 4, "grad_accum": 1, "lora_rank": 16},
        **{"lora_alpha": 32, "lora_dropout": 0.1, "val_fraction": 0.2, "val_split": "last", "save_steps": 100},
        **{"packing": False, "loss_on": "answers", "system_prompt": None, "lr_scheduler": "cosine"},
        **{"weight_decay": 0.01, "early_stopping_patience": 3, "early_stopping_min_delta": 0.0001},
    }.items() <= settings.items()


def test_the_learning_rate_that_is_left_out_is_the_recipes(felix, http):
    asked = {"base_model_id": BASE.id, "dataset_id": DATA.id, "type": "finetune"}
    recommended = http.post("/training/recommend", json=asked).json()
    assert submit(felix)["learning_rate"] == recommended["recommended"]["lr"]
    more = submit(felix, batch_size=16, gradient_accumulation_steps=4)["learning_rate"]
    assert more == learning_rate(replace(ModelSize.of_params(BASE.params), family=BASE.family), 64)


def test_every_field_reaches_its_setting(felix, http):
    record = submit(felix, **EVERYTHING)
    settings = settings_of(http, record["id"])
    for theirs, ours in translating.SETTINGS.items():
        assert settings[ours] == EVERYTHING[theirs], theirs
    assert settings["loss_on"] == "last_answer"
    assert (record["model_name"], record["project_id"]) == ("support-bot", "demo")
    assert (record["nr_epochs"], record["learning_rate"]) == (3, 0.0002)


def test_the_fields_that_were_tried_are_all_there_are():
    untried = {"base_model", "datasets", "rl_config", "encoder_learning_rate", "task_learning_rate"}
    assert set(requests.TrainingJobRequest.model_fields) == set(EVERYTHING) | untried


def test_a_field_has_the_limits_of_its_setting():
    def limits(field: Any) -> set[str]:
        return {repr(one) for one in field.metadata if type(one).__name__ in ("Ge", "Gt", "Le", "Lt")}

    for theirs, ours in translating.SETTINGS.items():
        if theirs != "nr_epochs":  # whole numbers there
            theirs_, ours_ = requests.TrainingJobRequest.model_fields[theirs], FinetuneHyperparams.model_fields[ours]
            assert limits(theirs_) >= limits(ours_), theirs


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({"model_name": ""}, ("model_name",)),
        ({"model_name": "x" * 101}, ("model_name",)),
        ({"datasets": []}, ("datasets",)),
        ({"datasets": ["rows"]}, ("datasets", 0)),
        ({"datasets": [{"name": "rows", "version": 0}]}, ("datasets", 0, "version")),
        ({"datasets": [{"name": "rows", "versoin": 1}]}, ("datasets", 0, "versoin")),
        ({"training_type": "qlora"}, ("training_type",)),
        ({"training_algorithm": "ppo"}, ("training_algorithm",)),
        ({"nr_epochs": 0}, ("nr_epochs",)),
        ({"nr_epochs": True}, ("nr_epochs",)),
        ({"learning_rate": 0}, ("learning_rate",)),
        ({"learning_rate": "fast"}, ("learning_rate",)),
        ({"batch_size": 0}, ("batch_size",)),
        ({"lora_r": 0}, ("lora_r",)),
        ({"lora_dropout": 1}, ("lora_dropout",)),
        ({"validation_data_percentage": 20}, ("validation_data_percentage",)),
        ({"save_steps": 0}, ("save_steps",)),
        ({"seed": -1}, ("seed",)),
        ({"packing": "sometimes"}, ("packing",)),
        ({"warmup_ratio": 1}, ("warmup_ratio",)),
        ({"warmup_steps": -1}, ("warmup_steps",)),
        ({"lr_scheduler_type": "step"}, ("lr_scheduler_type",)),
        ({"weight_decay": 2}, ("weight_decay",)),
        ({"early_stopping_patience": -1}, ("early_stopping_patience",)),
        ({"gradient_accumulation_steps": 0}, ("gradient_accumulation_steps",)),
        ({"encoder_learning_rate": 1e-5}, ("encoder_learning_rate",)),
        ({"task_learning_rate": 1e-5}, ("task_learning_rate",)),
        ({"base_model": "../../etc/passwd"}, ("base_model",)),
        ({"base_model": "8f14e45f-ceea-467f-a8a2-zzzzzzzzzzzz"}, ("base_model",)),
        ({"base_model": None}, ("base_model",)),
        ({"lora_rank": 8}, ("lora_rank",)),
    ],
)
def test_a_field_that_does_not_fit_is_refused_with_its_place(service, fields, loc):
    from engine.errors import InvalidRequest

    try:
        asked = requests.read(request(**fields))
        service.submit_named(translating.named(asked, allow_full_decoder=False))
    except InvalidRequest as error:
        (fault,) = translating.faults(error.faults).faults
        assert fault.loc == loc
    else:
        raise AssertionError("it was taken")


def test_faults_are_answered_together(felix):
    found = faults(felix.post("/training-jobs", json={"lora_r": 0, "lora_rnk": 8, "datasets": [{}]}))
    assert set(found) == {
        *(("body", "base_model"), ("body", "datasets", 0, "name"), ("body", "lora_r"), ("body", "lora_rnk"))
    }
    assert "lora_r" in found["body", "lora_rnk"]["msg"]


@pytest.mark.parametrize(
    ("fields", "loc", "kind"),
    [
        ({"training_algorithm": "dpo"}, ("rl_config",), "missing"),
        ({"training_algorithm": "grpo"}, ("rl_config",), "missing"),
        ({"training_algorithm": "grpo", "rl_config": {}}, ("rl_config", "reward_type"), "missing"),
        ({"rl_config": {}}, ("rl_config",), "value_error"),
        ({"training_algorithm": "dpo", "rl_config": {"dpo_beta": 0.1}}, ("training_algorithm",), "not_in_this_version"),
        (
            {"training_algorithm": "grpo", "rl_config": {"reward_type": "json_match"}},
            ("training_algorithm",),
            "not_in_this_version",
        ),
        ({"training_type": "full"}, ("training_type",), "value_error"),
    ],
)
def test_what_this_version_or_the_dialect_does_not_do_is_said(felix, fields, loc, kind):
    found = faults(felix.post("/training-jobs", json=request(**fields)))
    assert found[("body", *loc)]["type"] == kind


def test_every_weight_of_a_decoder_learns_where_the_setting_allows_it(felix, http, service, monkeypatch):
    monkeypatch.setattr(service, "settings", replace(service.settings, allow_full_decoder=True))
    record = submit(felix, training_type="full")
    assert record["training_type"] == settings_of(http, record["id"])["training_type"] == "full"


def test_a_model_goes_by_its_id_its_name_or_the_name_it_was_fetched_by(felix, service):
    fetched = replace(BASE, id=str(uuid.uuid4()), name="qwen", source="Qwen/Qwen3-0.6B", version=0)
    with service.store.write() as db:
        catalog.add_base_model(db, fetched)
    known = {BASE.id: BASE.id, BASE.name: BASE.id, TRAINED.name: TRAINED.id, "Qwen/Qwen3-0.6B": fetched.id}
    for reference, expected in known.items():
        assert submit(felix, base_model=reference)["base_model"] == expected


def test_a_job_starts_from_a_checkpoint_of_an_earlier_one(felix, http, service, tmp_path):
    first = submit(felix)["id"]
    made = telemetry.Checkpoint(
        **{
            "id": str(uuid.uuid4()),
            "job_id": first,
            "step": 5,
            "epoch": 1.0,
            "loss": 1.0,
            "eval_loss": 1.0,
            "lr": 1e-4,
        },
        **{"path": str(tmp_path), "bytes": 1, "state": "published", "created_at": 1.0},
    )
    gone = replace(made, id=str(uuid.uuid4()), step=6, state="removed")
    with service.store.write() as db:
        telemetry.add_checkpoint(db, made)
        telemetry.add_checkpoint(db, gone)
    record = submit(felix, base_model=made.id.upper())
    assert record["base_model"] == made.id
    assert service.job(record["id"]).base_model_id == BASE.id
    found = faults(felix.post("/training-jobs", json=request(base_model=gone.id)))
    assert "removed" in found["body", "base_model"]["msg"]


@pytest.mark.parametrize("reference", [UNKNOWN, "nobody", "Owner/Nothing"])
def test_a_model_that_is_not_there_is_answered_400(felix, reference):
    answer = felix.post("/training-jobs", json=request(base_model=reference))
    assert answer.status_code == 400
    assert reference in answer.json()["detail"]


def test_several_datasets_are_read_in_the_given_order(felix, http, service):
    with service.store.write() as db:
        old = catalog.add_dataset(db, replace(DATA, id=str(uuid.uuid4()), name="other", sha256="1" * 64))
        other = catalog.add_dataset(db, replace(DATA, id=str(uuid.uuid4()), name="other", sha256="2" * 64))
        third = catalog.add_dataset(db, replace(DATA, id=str(uuid.uuid4()), name="third", sha256="3" * 64))
    asked = [{"name": "other"}, {"name": DATA.name, "version": 1}, {"name": "third"}]
    record = submit(felix, datasets=asked)
    assert [each["name"] for each in record["datasets"]] == ["other", DATA.name, "third"]
    assert [each["version"] for each in record["datasets"]] == [other.version, 1, 1]
    assert http.get(f"/jobs/{record['id']}").json()["dataset_id"] == other.id
    assert service.job(record["id"]).more_dataset_ids == (DATA.id, third.id)
    for version in (other.version, old.version):
        both = [{"name": "third"}, {"name": "other"}, {"name": "other", "version": version}]
        found = faults(felix.post("/training-jobs", json=request(datasets=both)))
        assert set(found) == {("body", "datasets", 2)}


@pytest.mark.parametrize("asked", [{"name": "nothing"}, {"name": DATA.name, "version": 77}])
def test_a_dataset_that_is_not_there_is_answered_400(felix, asked):
    answer = felix.post("/training-jobs", json=request(datasets=[asked]))
    assert answer.status_code == 400
    assert asked["name"] in answer.json()["detail"]


@pytest.mark.parametrize("state", ["initialized", "uploading", "converting", "failed"])
def test_the_newest_version_that_is_ready_is_taken_whatever_becomes_of_a_newer_one(felix, service, state):
    expected = {"filename": "x.jsonl", "content_type": "", "dataset_type": "decoder", "now": 9.0}
    name, detail = f"held-up-{state}", {"message": "no room"}
    with service.store.write() as db:
        catalog.add_dataset(db, replace(DATA, id=str(uuid.uuid4()), name=name))
        later = uploads.add(db, id=str(uuid.uuid4()), dataset_name=name, **expected)
        uploads.move(db, later.id, before=[uploads.INITIALIZED], to=state, now=10.0, detail=detail)
    assert submit(felix, datasets=[{"name": name}])["datasets"] == [{"name": name, "version": 1}]
    fault = faults(felix.post("/training-jobs", json=request(datasets=[{"name": name, "version": 2}])))
    told = fault["body", "datasets", 0]["msg"]
    assert (f"is {state}, not ready (no room)" in told, f"GET /felix/datasets/{name}" in told) == (True, True)


def test_a_dataset_that_is_not_ready_is_refused_with_its_state(felix, service):
    expected = {"filename": "x.jsonl", "content_type": "", "dataset_type": "decoder", "now": 9.0}
    with service.store.write() as db:
        catalog.add_dataset(db, replace(DATA, id=str(uuid.uuid4()), name="growing"))
        later = uploads.add(db, id=str(uuid.uuid4()), dataset_name="growing", **expected)
        uploads.add(db, id=str(uuid.uuid4()), dataset_name="coming", **expected)
        uploads.move(db, later.id, before=[uploads.INITIALIZED], to=uploads.CONVERTING, now=10.0)
    states = {("growing", 2): "converting", ("coming", None): "initialized"}
    for (name, version), state in states.items():
        found = faults(felix.post("/training-jobs", json=request(datasets=[{"name": name, "version": version}])))
        assert state in found["body", "datasets", 0]["msg"]
    assert submit(felix, datasets=[{"name": "growing", "version": 1}])["status"] == "requested"


def test_a_script_may_use_a_model_name_again(felix, http):
    records = [submit(felix, model_name="nightly run/é") for _ in range(3)]
    assert {record["model_name"] for record in records} == {"nightly run/é"}
    outputs = [settings_of(http, record["id"])["output_name"] for record in records]
    assert outputs == ["nightly-run", "nightly-run-2", "nightly-run-3"]
    long = [settings_of(http, submit(felix, model_name="x" * 100)["id"])["output_name"] for _ in range(2)]
    assert long == ["x" * 100, f"{'x' * 98}-2"]
    strange = submit(felix, model_name="日本")
    assert settings_of(http, strange["id"])["output_name"] == f"model-{strange['id'][:8]}"


def test_the_same_idempotency_key_makes_one_job(felix):
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = felix.post("/training-jobs", json=request(seed=1), headers=key)
    again = felix.post("/training-jobs", json=request(seed=1, batch_size=4), headers=key)  # the default, spelled out
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["id"] == again.json()["id"]
    other = felix.post("/training-jobs", json=request(seed=2), headers=key)
    assert faults(other)["header", "Idempotency-Key"]["type"] == "idempotency_key_reused"


def test_a_key_means_its_job_whatever_its_names_mean_by_now(felix, service):
    key = {"Idempotency-Key": str(uuid.uuid4())}
    with service.store.write() as db:
        gone = catalog.add_dataset(db, replace(DATA, id=str(uuid.uuid4()), name="passing"))
    asked = request(datasets=[{"name": "passing"}])
    first = felix.post("/training-jobs", json=asked, headers=key).json()
    with service.store.write() as db:
        catalog.remove(db, gone)
    assert felix.post("/training-jobs", json=asked, headers=key).json()["id"] == first["id"]


def test_one_key_from_several_threads_makes_one_job_and_refuses_the_other_body(felix, service):
    key, answers, start = {"Idempotency-Key": str(uuid.uuid4())}, [], threading.Barrier(8)

    def post(seed: int) -> None:
        start.wait()
        answers.append(felix.post("/training-jobs", json=request(seed=seed), headers=key))

    before = service.total_jobs()
    threads = [threading.Thread(target=post, args=(number % 2,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [422] * 4
    assert service.total_jobs() == before + 1


def test_a_key_of_one_dialect_is_not_another_job_of_the_other(felix, http, payload):
    key = str(uuid.uuid4())
    assert http.post("/jobs", json=payload(idempotency_key=key)).status_code == 201
    answer = felix.post("/training-jobs", json=request(), headers={"Idempotency-Key": key})
    assert faults(answer)["header", "Idempotency-Key"]["type"] == "idempotency_key_reused"


def test_the_21st_request_of_a_key_within_a_minute_is_answered_429(felix, service, api):
    bad = [felix.post("/training-jobs", json={}).status_code for _ in range(20)]
    assert bad == [422] * 20
    refused = felix.post("/training-jobs", json=request())
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert felix.get("/training-jobs").status_code == 200
    with client(service, api.url) as another:
        submit(another)


def test_a_key_needs_the_scope(bare, key_with):
    assert bare.post("/felix/training-jobs", json=request()).status_code == 401
    answer = bare.post("/felix/training-jobs", json=request(), headers=key_with("read", "datasets"))
    assert answer.status_code == 403
