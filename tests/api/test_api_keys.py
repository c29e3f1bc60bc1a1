"""Keys: made, shown once, narrowed, revoked."""

from __future__ import annotations

import uuid

import httpx
import pytest

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings

SECRET = "fus_"


def make(http: httpx.Client, *scopes: str, name: str = "narrow") -> dict:
    answer = http.post("/keys", json={"name": name, "scopes": list(scopes)})
    assert answer.status_code == 201, answer.text
    return answer.json()


def with_key(http: httpx.Client, secret: str) -> httpx.Client:
    headers = {"X-API-Key": secret}
    return httpx.Client(base_url=http.base_url, headers=headers, trust_env=False, timeout=30)


def test_a_key_is_made_shown_once_and_opens_what_its_scopes_allow(http, service):
    made = make(http, "read", "billing")
    assert set(made) == {"id", "name", "prefix", "scopes", "secret", "created_at"}
    assert (made["scopes"], made["secret"][:10]) == (["read", "billing"], made["prefix"])
    listed = http.get("/keys")
    assert made["id"] in [key["id"] for key in listed.json()]
    assert made["secret"] not in listed.text
    assert made["secret"].encode() not in service.home.store.read_bytes()
    with with_key(http, made["secret"]) as narrow:
        assert narrow.get("/jobs").status_code == 200
        assert narrow.post("/jobs", json={}).status_code == 403
        assert narrow.post("/keys", json={"name": "x", "scopes": ["read"]}).status_code == 403


def test_a_key_gives_only_scopes_that_it_has_itself(http):
    with with_key(http, make(http, "read", "train")["secret"]) as narrow:
        refused = narrow.post("/keys", json={"name": "more", "scopes": ["read", "models", "billing"]})
        assert refused.status_code == 403
        assert "models, billing" in refused.json()["detail"]
        assert narrow.post("/keys", json={"name": "less", "scopes": ["read"]}).status_code == 201


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["read", "read"]}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"scopes": "read"}, "scopes"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a" * 101}, "name"),
        ({"name": 5}, "name"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_a_key_that_does_not_fit_is_refused_with_its_place(http, wrong, place):
    before = len(http.get("/keys").json())
    answer = http.post("/keys", json={"name": "a", "scopes": ["read"], **wrong})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", place]
    assert len(http.get("/keys").json()) == before


def test_a_revoked_key_opens_nothing_from_then_on(http):
    made = make(http, "read")
    with with_key(http, made["secret"]) as client:
        assert client.get("/jobs").status_code == 200
        gone = http.delete(f"/keys/{made['id']}")
        assert (gone.status_code, gone.content) == (204, b"")
        assert client.get("/jobs").status_code == 401
    assert made["id"] not in [key["id"] for key in http.get("/keys").json()]
    assert http.delete(f"/keys/{made['id']}").status_code == 404
    assert http.delete(f"/keys/{uuid.UUID(int=5)}").status_code == 404
    assert http.delete("/keys/first").status_code == 404


def test_a_narrow_key_revokes_itself_and_no_wider_one(http):
    narrow = make(http, "read", "train")
    wider = next(key for key in http.get("/keys").json() if key["name"] == "first key")
    with with_key(http, narrow["secret"]) as client:
        refused = client.delete(f"/keys/{wider['id']}")
        assert refused.status_code == 403
        assert "datasets, models, billing" in refused.json()["detail"]
        assert client.delete(f"/keys/{narrow['id']}").status_code == 204
        assert client.get("/jobs").status_code == 401
    assert http.get("/jobs").status_code == 200


def test_who_revokes_the_first_key_gets_a_new_one_from_the_machine(tmp_path):
    service = Service(Home(tmp_path), config=Settings())
    first = service.token()
    (key,) = service.keys()
    service.revoke_key(key.id)
    assert service.authenticate(first) is None
    again = service.token()
    assert again != first
    assert service.token() == again == service.home.token.read_text().strip()
    known = service.authenticate(again)
    assert known is not None
    assert "train" in known.scopes
    assert service.authenticate(first) is None
    service.close()
