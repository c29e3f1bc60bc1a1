"""What stands before the routes: the key and its scopes, sizes; of hosts and sites, see the table."""

from __future__ import annotations

import httpx
import pytest


@pytest.mark.parametrize(
    "header", [("Authorization", "Bearer {}"), ("authorization", "bearer {}"), ("X-API-Key", "{}")]
)
def test_a_key_is_taken_from_either_header(bare, service, header):
    assert bare.get("/jobs", headers={header[0]: header[1].format(service.token())}).status_code == 200


@pytest.mark.parametrize("value", ["Basic {}", "{}", "Bearer", "Bearer x{}", "Bearer {}, Bearer {}", "Bearer é"])
def test_a_key_in_another_form_is_no_key(bare, service, value):
    answer = bare.get("/jobs", headers={"Authorization": value.replace("{}", service.token()).encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert isinstance(answer.json()["detail"], str)


def test_a_key_in_the_query_string_is_no_key(bare, service):
    token = service.token()
    assert bare.get("/jobs", params={"key": token, "X-API-Key": token, "access_token": token}).status_code == 401


def test_an_unknown_path_needs_a_key_before_it_is_404(bare, http):
    assert bare.get("/nothing").status_code == 401
    answer = http.get("/nothing")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    assert http.get("/jobs/").status_code == 404


def test_each_scope_opens_its_own_routes_alone(bare, key_with, payload):
    train, read, datasets = key_with("train"), key_with("read"), key_with("datasets")
    new_set = {"name": "a", "path": "/nowhere"}
    assert bare.post("/jobs", json=payload(), headers=train).status_code == 201
    assert bare.get("/jobs", headers=train).status_code == 403
    assert bare.get("/jobs", headers=read).status_code == 200
    assert bare.post("/jobs", json=payload(), headers=read).status_code == 403
    assert bare.post("/datasets", json=new_set, headers=datasets).status_code == 400
    assert bare.post("/datasets", json=new_set, headers=train).status_code == 403


def test_a_body_over_the_limit_is_413_whether_its_length_is_declared_or_not(http, service):
    before = len(service.jobs())
    big = b'{"notes": "' + b"x" * (1024 * 1024) + b'"}'
    headers = {"Content-Type": "application/json"}
    chunks = (big[i : i + 65536] for i in range(0, len(big), 65536))
    for content in (big, chunks):
        answer = http.post("/jobs", content=content, headers=headers)
        assert answer.status_code == 413
        assert "1048576" in answer.json()["detail"]
    assert len(service.jobs()) == before


def test_a_body_just_under_the_limit_is_read(http):
    body = b'{"notes": "' + b"x" * (1024 * 1024 - 13) + b'"}'
    answer = http.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/jobs?" + "x" * 8192, {}, 414),
        ("/jobs", {f"X-{n}": "1" for n in range(70)}, 431),
    ],
)
def test_a_long_request_line_or_many_headers_are_refused(http: httpx.Client, path, headers, status):
    assert http.get(path, headers=headers).status_code == status
