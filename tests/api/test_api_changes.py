"""PATCH of a job, and asking it for a checkpoint: what is changed, what is refused, in every state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.jobs.editing import JobEdit
from engine.jobs.specs import JobRequest
from engine.service import Service
from store import jobs, states
from tests.api.conftest import Payload

UNKNOWN = "00000000-0000-0000-0000-000000000063"


def move(service: Service, job_id: str, *path: str) -> None:
    with service.store.write() as db:
        for state in path:
            assert jobs.transition(db, job_id, state, fence=0, now=100.0)


def test_name_tags_and_notes_are_changed_and_what_is_left_out_stays(http: httpx.Client, payload: Payload) -> None:
    job = http.post("/jobs", json=payload(name="first", tags=["a"], notes="why")).json()
    changed = http.patch(f"/jobs/{job['id']}", json={"name": "second", "tags": ["b", "c"]})
    assert changed.status_code == 200
    assert changed.json() == {**job, "name": "second", "tags": ["b", "c"]}
    assert http.patch(f"/api/jobs/{job['id']}", json={"notes": "", "tags": []}).json()["notes"] == ""
    assert http.get(f"/jobs/{job['id']}").json() == {**job, "name": "second", "tags": [], "notes": ""}
    told = [event["payload"] for event in http.get(f"/jobs/{job['id']}/events").json() if event["kind"] == "edited"]
    assert told == [{"fields": ["name", "tags"]}, {"fields": ["notes", "tags"]}]
    assert http.patch(f"/jobs/{job['id']}", json={}).json()["name"] == "second"


@pytest.mark.parametrize(
    "path", [(), ("provisioning", "staging", "running"), ("provisioning", "failed"), ("cancelled",)]
)
def test_a_job_is_edited_in_every_state(
    http: httpx.Client, service: Service, job_id: str, path: tuple[str, ...]
) -> None:
    move(service, job_id, *path)
    answer = http.patch(f"/jobs/{job_id}", json={"notes": "seen"})
    assert (answer.status_code, answer.json()["notes"]) == (200, "seen")
    assert answer.json()["status"] == (path[-1] if path else "queued")
    if path and path[-1] == "running":
        move(service, job_id, "cancelled")


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"nmae": "x"}, ["body", "nmae"]),
        ({"status": "completed"}, ["body", "status"]),
        ({"name": None}, ["body", "name"]),
        ({"name": ""}, ["body", "name"]),
        ({"name": "x" * 101}, ["body", "name"]),
        ({"name": 7}, ["body", "name"]),
        ({"tags": None}, ["body", "tags"]),
        ({"tags": "a"}, ["body", "tags"]),
        ({"tags": ["a"] * 33}, ["body", "tags"]),
        ({"tags": [1]}, ["body", "tags", 0]),
        ({"notes": None}, ["body", "notes"]),
        ({"notes": "x" * 10_001}, ["body", "notes"]),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(
    http: httpx.Client, job_id: str, changes: dict[str, Any], loc: list[Any]
) -> None:
    before = http.get(f"/jobs/{job_id}").json()
    answer = http.patch(f"/jobs/{job_id}", json={"notes": "no", **changes})
    assert answer.status_code == 422
    assert [fault["loc"] for fault in answer.json()["detail"]] == [loc]
    assert http.get(f"/jobs/{job_id}").json() == before


def test_the_limits_are_those_of_a_submit() -> None:
    for name, field in JobEdit.model_fields.items():
        limits = [repr(limit) for limit in field.metadata]
        assert limits == [repr(limit) for limit in JobRequest.model_fields[name].metadata], name


def test_a_job_that_others_wait_for_is_called_by_its_new_name_in_their_holds(
    http: httpx.Client, payload: Payload, job_id: str
) -> None:
    waiting = http.post("/jobs", json=payload(base_model_id=f"@{job_id}")).json()["id"]
    http.patch(f"/jobs/{job_id}", json={"name": "renamed"})
    http.post(f"/jobs/{job_id}/cancel")
    assert http.delete(f"/jobs/{job_id}").json()["detail"].startswith("The job renamed is what")
    http.post(f"/jobs/{waiting}/cancel")


def test_a_running_job_is_asked_for_a_checkpoint_and_any_other_is_not(
    http: httpx.Client, service: Service, job_id: str
) -> None:
    queued = http.post(f"/jobs/{job_id}/checkpoint")
    assert queued.status_code == 409
    assert "is queued; only one that is running can save now" in queued.json()["detail"]
    move(service, job_id, "provisioning", "staging", "running")
    asked = http.post(f"/jobs/{job_id}/checkpoint")
    assert (asked.status_code, asked.json()["save_requested"], asked.json()["status"]) == (200, True, "running")
    assert http.get(f"/jobs/{job_id}").json() == asked.json()
    move(service, job_id, states.CHECKPOINTING)
    assert http.post(f"/jobs/{job_id}/checkpoint").status_code == 200, "during another save"
    move(service, job_id, states.RUNNING)
    assert http.post(f"/jobs/{job_id}/cancel").json()["stop_requested"]
    assert http.post(f"/jobs/{job_id}/checkpoint").status_code == 409
    move(service, job_id, "cancelled")


def test_both_ask_for_the_scope_train_and_for_a_job_that_is_there(
    http: httpx.Client, bare: httpx.Client, job_id: str, key_with: Callable[..., dict[str, str]]
) -> None:
    reader = key_with("read", "datasets", "models")
    assert bare.patch(f"/jobs/{job_id}", json={}, headers=reader).status_code == 403
    assert bare.post(f"/jobs/{job_id}/checkpoint", headers=reader).status_code == 403
    for unknown in (UNKNOWN, "x"):
        assert http.patch(f"/jobs/{unknown}", json={"name": "x"}).status_code == 404
        assert http.post(f"/jobs/{unknown}/checkpoint").status_code == 404
    paths = http.get("/openapi.json").json()["paths"]
    assert {"200", "404", "422"} <= paths["/jobs/{id}"]["patch"]["responses"].keys()
    assert {"200", "404", "409"} <= paths["/jobs/{id}/checkpoint"]["post"]["responses"].keys()
