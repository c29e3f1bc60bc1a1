"""The server around the routes: its address, its limits, its document, and what it does when the store cannot."""

from __future__ import annotations

import re
import socket
import sqlite3
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from engine.errors import EngineError, NoSpace
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui.api import errors, wire
from fusion_tui.api.server import ApiServer, is_loopback
from store.errors import StoreBusy, StoreError, StoreFull, StoreReadOnly

ROUTES = {
    ("get", "/health"),
    *((method, "/jobs") for method in ("get", "post")),
    *((method, "/jobs/{id}") for method in ("get", "patch", "delete")),
    *(("get", f"/jobs/{{id}}/{part}") for part in ("metrics", "logs", "stream", "events", "result", "checkpoints")),
    *(("post", f"/jobs/{{id}}/{verb}") for verb in ("cancel", "checkpoint", "retry")),
    *(("get", path) for path in ("/base-models", "/models", "/models/{id}", "/models/{id}/download", "/datasets")),
    *(("get", path) for path in ("/keys", "/usage", "/overview")),
    *(("delete", path) for path in ("/models/{id}", "/keys/{id}")),
    *(("post", path) for path in ("/datasets", "/uploads/presign", "/keys")),
    ("get", "/datasets/{id}/inspect"),
    *(("post", path) for path in ("/jobs/plan", "/training/recommend", "/pricing/estimate")),
}


def talk(url: str, data: bytes) -> bytes:
    """Send bytes as they are and return what comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=15) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


def test_the_document_needs_no_key_and_describes_every_route_at_both_mounts(bare):
    document = bare.get("/openapi.json").json()
    found = {(method, path) for path, operations in document["paths"].items() for method in operations}
    own = {(method, path) for method, path in found if not path.startswith(("/felix", "/inference"))}
    assert own == ROUTES | {(method, f"/api{path}") for method, path in ROUTES}


def test_the_document_gives_a_schema_for_every_answer_and_body_and_no_loose_reference(bare):
    answer = bare.get("/openapi.json")
    document = answer.json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            good = {code: body for code, body in operation["responses"].items() if code < "300"}
            assert good, (method, path)
            for code, body in good.items():
                assert code == "204" or body["content"], (method, path)
                told = (one for kind, one in body.get("content", {}).items() if kind != "text/event-stream")
                assert all(one.get("schema") for one in told), (method, path)
            if not path.endswith("/health"):
                assert operation["security"] == [{"Bearer": []}, {"ApiKey": []}]
                assert {"401", "403", "503"} <= set(operation["responses"])
    wanted = set(re.findall(r'"#/components/schemas/([^"]+)"', answer.text))
    assert wanted <= set(document["components"]["schemas"])
    assert {"TrainRequest", "FinetuneHyperparams", "NewDataset", "Job", "Problem", "InvalidFields"} <= wanted
    assert "HTTPValidationError" not in wanted


def test_two_hundred_requests_leave_descriptors_and_threads_as_they_were(http, job_id):
    process = psutil.Process()
    paths = ["/jobs", f"/jobs/{job_id}/metrics", f"/jobs/{job_id}/logs", "/health", "/nothing"]

    def ask(times: int) -> None:
        for number in range(times):
            http.get(paths[number % len(paths)])

    ask(20)
    before = (process.num_fds(), process.num_threads())
    ask(200)
    after = (process.num_fds(), process.num_threads())
    assert all(abs(new - old) <= 2 for old, new in zip(before, after, strict=True)), (before, after)


def test_a_port_in_use_is_said_with_the_remedy(api, service):
    port = int(api.url.rpartition(":")[2])
    with pytest.raises(EngineError, match=rf"Port {port} on 127.0.0.1 is in use.*FUSION_PORT / --port"):
        ApiServer(service, "127.0.0.1", port).start()


def test_an_address_that_is_not_ours_is_said(service):
    with pytest.raises(EngineError, match=r"cannot listen on 192\.0\.2\.1"):
        ApiServer(service, "192.0.2.1", 0).start()


def test_a_wider_address_needs_a_key_and_still_checks_the_host(tmp_path: Path):
    service = Service(Home(tmp_path), config=Settings())
    server = ApiServer(service, "0.0.0.0", 0)
    with pytest.raises(EngineError, match="while there is no key"):
        server.start()
    service.token()
    server.start()
    try:
        port = server.url.rpartition(":")[2]
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
        foreign = httpx.get(f"{server.url}/health", headers={"Host": f"192.0.2.1:{port}"}, trust_env=False)
        assert foreign.status_code == 421
    finally:
        server.stop()
        service.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_addresses_are_known(host, expected):
    assert is_loopback(host) is expected


def test_a_stopped_server_has_let_go_of_its_port_its_thread_and_its_clients(service):
    def serving() -> int:
        return [thread.name for thread in threading.enumerate()].count("api")

    before = serving()
    for _ in range(3):
        server = ApiServer(service, "127.0.0.1", 0)
        server.start()
        assert serving() == before + 1
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            assert client.get("/health").status_code == 200
            server.stop()
            server.stop()
            assert serving() == before
        again = ApiServer(service, "127.0.0.1", int(server.url.rpartition(":")[2]))
        again.start()
        again.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000,
    ],
)
def test_bytes_that_are_no_request_are_answered_400_in_json_and_hung_up_on(api, data):
    head, _, body = talk(api.url, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b'{"detail":' in body


def test_two_ways_to_count_a_body_are_refused(api):
    host = api.url.removeprefix("http://").encode()
    framing = b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\nConnection: close"
    answer = talk(api.url, b"POST /jobs HTTP/1.1\r\nHost: " + host + b"\r\n" + framing + b"\r\n\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("data", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: a\r\nX-"])
def test_a_client_that_falls_silent_before_its_request_is_hung_up_on(api, monkeypatch, data):
    monkeypatch.setattr(wire, "HEADER_DEADLINE_S", 0.2)
    assert talk(api.url, data) == b""


def test_a_body_that_does_not_come_is_408(api, http, monkeypatch):
    monkeypatch.setattr("fusion_tui.api.guard.BODY_DEADLINE_S", 0.2)
    host, key = api.url.removeprefix("http://"), http.headers["authorization"]
    head = f"POST /jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: {key}\r\nContent-Type: application/json\r\n"
    answer = talk(api.url, f'{head}Content-Length: 50\r\n\r\n{{"type"'.encode())
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'{"detail":' in answer


def test_connections_over_the_limit_are_answered_503_with_a_time_to_return(bare, api, monkeypatch):
    monkeypatch.setattr(wire, "MAX_CONNECTIONS", 0)
    with httpx.Client(base_url=api.url, trust_env=False) as client:
        answer = client.get("/health")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreBusy("busy"), 503),
        (StoreFull("full"), 503),
        (StoreReadOnly("read-only"), 503),
        (NoSpace("no room"), 503),
        (sqlite3.OperationalError("database is locked"), 503),
        (OSError(28, "No space left on device"), 503),
        (StoreError("damaged"), 500),
        (RuntimeError("secret detail"), 500),
    ],
)
def test_what_fails_below_is_answered_with_its_status(error, status):
    answer = errors.answer(error)
    assert answer.status_code == status
    assert b'{"detail":' in bytes(answer.body)
    assert b"secret" not in bytes(answer.body)
    assert ("retry-after" in answer.headers) == ("busy" in str(error) or "locked" in str(error))


def test_a_damaged_store_is_answered_in_json_and_logged_and_the_server_goes_on(tmp_path: Path, caplog):
    service = Service(Home(tmp_path), config=Settings())
    server = ApiServer(service, "127.0.0.1", 0)
    server.start()
    try:
        with httpx.Client(base_url=server.url, headers={"X-API-Key": service.token()}, trust_env=False) as client:
            with service.store.write() as db:
                db.conn.execute("ALTER TABLE jobs RENAME TO hidden")
            assert client.get("/jobs").status_code == 500
            assert client.get("/jobs").json()["detail"]
            assert "GET '/jobs'" in caplog.text
            assert service.token() not in caplog.text
            with service.store.write() as db:
                db.conn.execute("ALTER TABLE hidden RENAME TO jobs")
            assert client.get("/jobs").json() == []
    finally:
        server.stop()
        service.close()


def test_a_key_that_the_store_cannot_look_up_yet_keeps_nobody_else_waiting(bare, http, service, job_id):
    held = sqlite3.connect(service.store.path, isolation_level=None)
    held.execute("BEGIN EXCLUSIVE")
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(http.get(f"/jobs/{job_id}").status_code))
    waiting.start()
    try:
        for _ in range(5):
            assert bare.get("/openapi.json", timeout=30).status_code == 200
        assert not found
    finally:
        held.execute("ROLLBACK")
        held.close()
    waiting.join(20)
    assert found == [200]
