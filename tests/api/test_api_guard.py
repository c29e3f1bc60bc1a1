"""What stands before the routes: Host, Origin, Sec-Fetch-Site, the key and its scopes, sizes."""

from __future__ import annotations

import itertools

import httpx
import pytest

from fusion_tui.api.server import ApiServer

HOSTS = {
    "127.0.0.1:{port}": True,
    "localhost:{port}": True,
    "LOCALHOST:{port}": True,
    "[::1]:{port}": True,
    "box.lan": True,
    "Box.LAN:80": True,
    "proxy.lan:9000": True,
    "proxy.lan": False,
    "proxy.lan:9001": False,
    "127.0.0.1": False,
    "127.0.0.1:1": False,
    "evil.example:{port}": False,
    "localhost.evil.example:{port}": False,
    "127.0.0.1:{port}@evil.example": False,
    "0.0.0.0:{port}": False,
    "": False,
}
ORIGINS = {
    None: True,
    "http://127.0.0.1:{port}": True,
    "http://localhost:{port}": True,
    "https://box.lan": True,
    "null": False,
    "http://evil.example": False,
    "http://127.0.0.1:1": False,
    "https://127.0.0.1": False,
    "file://": False,
}
SITES = {None: True, "same-origin": True, "none": True, "same-site": False, "cross-site": False, "": False}
METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "BREW"]


def expected(host: bool, origin: bool, site: bool, method: str, key: str) -> int:
    if not host:
        return 421
    if method not in ("GET", "HEAD", "OPTIONS") and not (origin and site):
        return 403
    if key != "right":
        return 401
    # Past the guard: this path takes GET and, with a body of its own type, POST.
    return {"GET": 200, "POST": 415}.get(method, 405)


@pytest.mark.parametrize("method", METHODS)
def test_every_cell_of_host_origin_site_method_and_key_is_as_written(api: ApiServer, bare, service, method):
    port = api.url.rpartition(":")[2]
    keys = {"right": f"Bearer {service.token()}", "wrong": "Bearer fus_wrong", "none": None}
    before = len(service.jobs())
    some_hosts = ["127.0.0.1:{port}", "box.lan", "evil.example:{port}"]
    cells = [
        *itertools.product(HOSTS, [None], [None], keys),
        *itertools.product(some_hosts, ORIGINS, SITES, keys),
    ]
    for host, origin, site, key in cells:
        given = {"Host": host, "Origin": origin, "Sec-Fetch-Site": site, "Authorization": keys[key]}
        headers = {name: value.replace("{port}", port) for name, value in given.items() if value is not None}
        answer = bare.request(method, "/jobs", headers=headers)
        want = expected(HOSTS[host], ORIGINS[origin], SITES[site], method, key)
        assert answer.status_code == want, (method, headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert want == 200 or method == "HEAD" or answer.json()["detail"]
    assert len(service.jobs()) == before


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


def test_every_route_but_health_refuses_a_key_without_the_scope(bare, key_with):
    header = key_with("billing")
    document = bare.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        if path.endswith("/health"):
            continue
        for method in operations:
            answer = bare.request(method, path, headers=header)
            assert answer.status_code == 403, (method, path)
            assert "lacks the scope" in answer.json()["detail"]


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
