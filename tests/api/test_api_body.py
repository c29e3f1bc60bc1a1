"""Reading JSON bodies: what is refused before the service sees it."""

from __future__ import annotations

import pytest

JSON = {"Content-Type": "application/json"}
MALFORMED = [
    b"",
    b"{",
    b"{'type': 1}",
    b'{"type": "finetune",}',
    b'{"type": "finetune", "type": "train"}',
    b'{"hyperparams": {"steps": 1, "steps": 2}}',
    b'{"lr": NaN}',
    b'{"lr": Infinity}',
    b'{"lr": -Infinity}',
    b'{"lr": 1e999}',
    b'{"steps": ' + b"9" * 5000 + b"}",
    b'{"name": "\xff"}',
    b'\xff\xfe{\x00"\x00',
    b'{"name": "\\ud800"}',
    b'{"\\ud800": 1}',
    b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b"[" * 500_000,
    b"{} {}",
]


@pytest.mark.parametrize("path", ["/jobs", "/datasets"])
@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_a_body_that_is_not_plain_json_is_400(http, service, path, body):
    before = len(service.jobs())
    answer = http.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    assert isinstance(answer.json()["detail"], str)
    assert len(service.jobs()) == before


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"'])
def test_json_that_is_no_object_is_422(http, body):
    answer = http.post("/jobs", content=body, headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["detail"] == [{"loc": ["body"], "msg": "Input should be an object", "type": "dict_type"}]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_another_content_type_is_415(http, headers):
    answer = http.post("/jobs", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("value", ["application/json", "Application/JSON", 'application/json; charset="UTF-8"'])
def test_json_may_be_announced_in_any_spelling(http, payload, value):
    import json

    body = json.dumps(payload()).encode()
    assert http.post("/jobs", content=body, headers={"Content-Type": value}).status_code == 201
