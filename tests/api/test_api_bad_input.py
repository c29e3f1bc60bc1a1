"""Every route against what is wrong for it: ids, content types, JSON, fields, scopes.

The routes are read from the application, so that a new one is tested by being there; only its scope has to be written
down here, which is the point of a second look.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from store import keys

# Which scope opens what, from the design: reading; submitting and managing runs; datasets; models; what runs cost.
NEEDS = {
    "read": """
        GET /jobs                   GET /jobs/{id}                  GET /jobs/{id}/metrics      GET /jobs/{id}/logs
        GET /jobs/{id}/events       GET /jobs/{id}/result           GET /jobs/{id}/checkpoints  GET /jobs/{id}/stream
        GET /base-models            GET /models                     GET /models/{id}            GET /datasets
        GET /datasets/{id}/inspect  POST /training/recommend        GET /keys
        GET /felix/training-jobs    GET /felix/training-jobs/{id}   GET /felix/training-jobs/{id}/logs
        GET /felix/training-jobs/{id}/checkpoints                   GET /felix/base-models
        GET /felix/trained-models   GET /felix/datasets             GET /felix/datasets/{name}
        GET /felix/datasets/{name}/{version}                        GET /felix/datasets/{name}/{version}/preview
        GET /felix/datasets/{name}/{version}/download
    """,
    "train": """
        POST /jobs                  POST /jobs/plan                 PATCH /jobs/{id}            DELETE /jobs/{id}
        POST /jobs/{id}/cancel      POST /jobs/{id}/retry           POST /jobs/{id}/checkpoint
        POST /felix/training-jobs   POST /felix/training-jobs/{id}/stop
        DELETE /felix/training-jobs/{id}                            POST /keys                  DELETE /keys/{id}
        POST /felix/projects        POST /felix/projects/{id}/deployments
        POST /felix/training-jobs/{id}/checkpoints/{checkpoint_id}/deploy
        POST /inference             POST /felix/inference
    """,
    "datasets": """
        POST /datasets              POST /uploads/presign
        POST /felix/datasets/upload/url                             POST /felix/datasets/upload/process
        DELETE /felix/datasets/{name}                               DELETE /felix/datasets/{name}/{version}
    """,
    "models": """
        DELETE /models/{id}         GET /models/{id}/download       GET /felix/training-jobs/{id}/download
    """,
    "billing": "POST /pricing/estimate GET /usage GET /overview",
}
OPEN = {("GET", "/health")}
SCOPE_OF = {pair: scope for scope, text in NEEDS.items() for pair in zip(*[iter(text.split())] * 2, strict=True)}
UNKNOWN = str(uuid.UUID(int=77))
NO_IDS = ["1", "jobs", "-", "%00", UNKNOWN[:-1], UNKNOWN + "0", UNKNOWN.replace("-", ""), "{" + UNKNOWN + "}"]
NO_IDS += ["%EF%BC%90" + UNKNOWN[1:], UNKNOWN + "%0A", "..%2f" + UNKNOWN, "%27%20OR%201=1--", "*", "x" * 4000]
NOT_JSON = ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
NOT_JSON += ["application/json; charset=utf-16", "application/jsonx", "application/json, text/plain", "json"]
BROKEN = [b"", b"{", b"{}x", b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\xff"}', b'{"a": "\\ud800"}']
BROKEN += [b"\xef\xbb\xbf{}", b'{"a": ' * 40 + b"1" + b"}" * 40, b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]


class Route(NamedTuple):
    """One route of the OpenAPI document, without the second mount of dialect A."""

    method: str
    path: str
    takes_json: bool
    needs_key: bool

    @property
    def twice(self) -> bool:
        """Whether it is mounted at `/api` too: all of dialect A is."""
        return not self.path.startswith(("/felix", "/inference"))

    def at(self, job_id: str = UNKNOWN) -> str:
        """Return its path with ids, names and numbers in it."""
        return self.path.format(id=job_id, checkpoint_id=UNKNOWN, name="unheard-of", version=1)


@pytest.fixture(scope="module")
def document(bare: httpx.Client) -> dict[str, Any]:
    return bare.get("/openapi.json").json()


@pytest.fixture(scope="module")
def routes(document: dict[str, Any]) -> list[Route]:
    found = []
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            takes_json = "application/json" in told.get("requestBody", {}).get("content", {})
            found.append(Route(method.upper(), path, takes_json, "security" in told))
    return [route for route in found if not route.path.startswith("/api/")]


def asked_of(document: dict[str, Any], route: Route) -> list[dict[str, Any]]:
    """Return the schemas that a route's body may have."""
    told = document["paths"][route.path][route.method.lower()]["requestBody"]["content"]["application/json"]["schema"]
    return told.get("oneOf", [told])


@pytest.fixture(scope="module")
def everyone(service) -> Callable[[], dict[str, str]]:
    """Make a key with every scope: a new one for each route, since some count how often a key asks."""

    def make() -> dict[str, str]:
        secret = f"fus_{uuid.uuid4()}"
        with service.store.write() as db:
            keys.add(db, id=str(uuid.uuid4()), name="all", secret=secret, scopes=keys.SCOPES, now=5.0)
        return {"X-API-Key": secret}

    return make


def test_every_route_has_a_scope_in_the_table_and_no_row_of_it_is_stale(routes):
    assert {(route.method, route.path) for route in routes if route.needs_key} == set(SCOPE_OF)
    assert {(route.method, route.path) for route in routes if not route.needs_key} == OPEN


def test_a_key_with_every_scope_but_the_one_is_refused_and_the_one_is_enough(bare, service, routes, key_with):
    for scope in keys.SCOPES:
        only, others = key_with(scope), key_with(*(other for other in keys.SCOPES if other != scope))
        before = service.version()
        for route in routes:
            if SCOPE_OF.get((route.method, route.path)) != scope:
                continue
            for path in [route.at(), *([f"/api{route.at()}"] if route.twice else [])]:
                refused = bare.request(route.method, path, headers=others)
                assert refused.status_code == 403, route
                assert f"'{scope}'" in refused.json()["detail"]
                if not route.path.endswith("/stream"):
                    passed = bare.request(route.method, path, headers=only)
                    assert passed.status_code not in (401, 403), route
                    assert passed.status_code < 500, route
        assert service.version() == before


def test_what_is_no_uuid_is_404_on_every_route_that_takes_an_id(bare, service, routes, everyone):
    with_ids = [route for route in routes if "{id}" in route.path]
    assert len(with_ids) > 10
    header = everyone()
    before = service.version()
    for route in with_ids:
        for id_ in NO_IDS if route.path == "/jobs/{id}" else NO_IDS[::4]:
            answer = bare.request(route.method, route.at(id_), headers=header, json={} if route.takes_json else None)
            assert answer.status_code in ({404, 422} if route.takes_json else {404}), (route, id_)
    assert service.version() == before


def test_an_unknown_uuid_is_404_and_an_upper_case_one_is_the_same_id(bare, routes, everyone, job_id):
    for route in routes:
        if "{id}" in route.path and not route.takes_json and "model" not in route.path:
            json = {} if route.method == "POST" else None
            where = route.at(UNKNOWN)
            answer = bare.request(route.method, where, headers=everyone(), params={"model": "tiny"}, json=json)
            assert answer.status_code in (404, 422), route
    assert bare.get(f"/jobs/{job_id.upper()}", headers=everyone()).json()["id"] == job_id


def test_another_content_type_is_415_on_every_route_that_takes_json(bare, service, routes, everyone, job_id):
    for route in (route for route in routes if route.takes_json):
        header = everyone()
        before = service.version()
        for media in NOT_JSON if route.path == "/jobs" else NOT_JSON[::3]:
            headers = {**header, "Content-Type": media} if media else header
            answer = bare.request(route.method, route.at(job_id), headers=headers, content=b"{}")
            assert answer.status_code == 415, (route, media)
        assert service.version() == before


def test_what_is_not_plain_json_is_400_on_every_route_that_takes_json(bare, service, routes, everyone, job_id):
    for route in (route for route in routes if route.takes_json):
        header = {**everyone(), "Content-Type": "application/json"}
        before = service.version()
        for body in BROKEN if route.path == "/jobs" else BROKEN[::3]:
            answer = bare.request(route.method, route.at(job_id), headers=header, content=body)
            assert answer.status_code == 400, (route, body[:40])
            assert isinstance(answer.json()["detail"], str)
        for body in (b"null", b'[{"a": 1}]'):
            answer = bare.request(route.method, route.at(job_id), headers=header, content=body)
            assert answer.status_code == 422, (route, body)
        assert service.version() == before


NESTED = {"hyperparams", "rl_config"}


def fields_of(schema: dict[str, Any], document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the properties of a schema, of what it refers to, and of each of its alternatives."""
    for ref in (one for one in (schema.get("$ref"), *(s.get("$ref") for s in schema.get("anyOf", []))) if one):
        yield from fields_of(document["components"]["schemas"][ref.rpartition("/")[2]], document)
    yield from schema.get("properties", {}).items()


# What a request has to say for a fault in another field to be told.
TYPES = {f"{word.title()}Request": {"type": word} for word in ("train", "finetune", "contract")}


@pytest.mark.parametrize("wrong", [[[1]], -1e308], ids=["a list of lists", "a far number"])
def test_every_field_that_is_wrong_is_named_in_one_answer(bare, document, routes, everyone, wrong):
    for route in (route for route in routes if route.takes_json):
        for kind in asked_of(document, route):
            valid = TYPES.get(kind.get("$ref", "").rpartition("/")[2], {})
            fields = {name: field for name, field in fields_of(kind, document) if name not in valid}
            within = {name: dict(fields_of(fields[name], document)) for name in NESTED & set(fields)}
            asked = [
                ((), dict.fromkeys(fields, wrong)),
                *(((name,), {name: dict.fromkeys(within[name], wrong)}) for name in within),
            ]
            for place, values in asked:
                answer = bare.request(route.method, route.at(), headers=everyone(), json={**valid, **values})
                assert answer.status_code == 422, (route, place, answer.text)
                told = {tuple(fault["loc"][: len(place) + 2]) for fault in answer.json()["detail"]}
                inner = values[place[0]] if place else values
                assert {("body", *place, name) for name in inner} <= told, route
