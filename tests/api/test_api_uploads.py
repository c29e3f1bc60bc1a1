"""Files that are sent to a signed address, whole or not at all, and made datasets; what such an address refuses."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.data import importing
from engine.errors import Conflict
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from engine.transfer.signing import Signer
from fusion_tui.api.server import ApiServer
from store import NotFound, uploads
from tests.conditions import eventually
from tests.crash import disks, faults

MOST = 24_000_000
ROWS = b'{"text": "one"}\n{"text": "two"}\n'
UNKNOWN = str(uuid.UUID(int=99))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    config = Settings(max_upload_gb=MOST / 1000**3, allowed_hosts=("box.lan",))
    opened = Service(Home(tmp_path_factory.mktemp("home") / "data"), config=config)
    yield opened
    opened.close()


def presign(http: httpx.Client, filename: str = "rows.jsonl") -> dict[str, Any]:
    answer = http.post("/uploads/presign", json={"filename": filename, "content_type": "application/jsonl"})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def left_of(service: Service, upload_id: str) -> list[str]:
    folder = service.home.upload(upload_id)
    return sorted(path.name for path in folder.iterdir() if path.name != "lock") if folder.exists() else []


def half_sent(url: str, length: int = 100_000, sent: int = 50_000) -> socket.socket:
    """Send the head of a PUT and the beginning of its body; return the connection."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = socket.create_connection((host.split(":")[0], int(host.split(":")[1])), timeout=15)
    head = f"PUT /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + b"x" * sent)
    return connection


def test_a_file_is_sent_and_becomes_a_dataset(http, bare, service):
    asked = presign(http)
    assert set(asked) == {"upload_id", "key", "url", "method"}
    assert asked["method"] == "PUT"
    assert asked["url"].startswith(f"{http.base_url}".rstrip("/"))
    sent = bare.put(asked["url"], content=ROWS, headers={"Content-Type": "whatever/it-is"})
    assert (sent.status_code, sent.json()["bytes"], sent.json()["status"]) == (200, len(ROWS), "uploaded")
    made = http.post("/datasets", json={"name": "sent", "upload_id": asked["upload_id"].upper()})
    assert made.status_code == 201, made.text
    assert (made.json()["id"], made.json()["rows"], made.json()["version"]) == (asked["upload_id"], 2, 1)
    assert made.json() in http.get("/datasets").json()
    assert Path(service.dataset("sent").path).read_bytes() == ROWS
    assert left_of(service, asked["upload_id"]) == []
    again = http.post("/datasets", json={"name": "sent", "upload_id": asked["upload_id"]})
    assert (again.status_code, "ready already" in again.json()["detail"]) == (409, True)


def test_what_was_sent_cannot_be_sent_again_and_is_not_there_before(http, bare):
    asked = presign(http)
    early = http.post("/datasets", json={"name": "sent", "upload_id": asked["upload_id"]})
    assert (early.status_code, "No file has come" in early.json()["detail"]) == (409, True)
    assert bare.put(asked["url"], content=ROWS).status_code == 200
    again = bare.put(asked["url"], content=b"other")
    assert (again.status_code, "uploaded already" in again.json()["detail"]) == (409, True)


def test_bad_rows_are_told_by_the_files_own_name_and_the_upload_can_be_registered_otherwise(http, bare):
    asked = presign(http, "my notes.jsonl")
    bare.put(asked["url"], content=ROWS + b'{"nothing": 1}\n')
    request = {"name": "mended", "upload_id": asked["upload_id"]}
    refused = http.post("/datasets", json=request)
    assert (refused.status_code, "my notes.jsonl line 3" in refused.json()["detail"]) == (400, True)
    made = http.post("/datasets", json={**request, "drop_bad": True})
    assert (made.status_code, made.json()["rows"], made.json()["facts"]["dropped"]) == (201, 2, 1)


@pytest.mark.parametrize("fields", [{}, {"upload_id": UNKNOWN, "path": "/x"}, {"upload_id": "x"}, {"upload_id": None}])
def test_a_dataset_comes_from_an_upload_or_a_path_and_never_from_both(http, fields):
    answer = http.post("/datasets", json={"name": "a", **fields})
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], list)


def test_an_unknown_upload_is_404(http, bare, service):
    assert http.post("/datasets", json={"name": "a", "upload_id": UNKNOWN}).status_code == 404
    for name in (UNKNOWN, "x", "..", "../store.db"):
        url = service.signer.sign("PUT", f"/signed/uploads/{name}").replace("..", "%2e%2e")
        assert bare.put(url, content=b"x").status_code == 404


@pytest.mark.parametrize(
    "filename",
    ["", "x", "x.exe", ".jsonl", "../x.jsonl", "a/b.csv", "a\\b.csv", "a\n.csv", "a\0.csv", "é" * 130 + ".csv"],
)
def test_a_name_that_is_no_plain_files_name_of_a_known_kind_is_refused(http, filename):
    answer = http.post("/uploads/presign", json={"filename": filename})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "filename"]


def test_only_a_key_for_datasets_gets_an_address(bare, key_with: Callable[..., dict[str, str]]):
    request = {"filename": "a.csv", "content_type": "text/csv"}
    others = key_with("read", "train", "models", "billing")
    assert bare.post("/uploads/presign", json=request, headers=others).status_code == 403
    assert bare.post("/uploads/presign", json=request, headers=key_with("datasets")).status_code == 200


def test_an_address_opens_one_method_on_one_path_for_an_hour(http, bare, service):
    first, second = presign(http), presign(http)
    path, query = first["url"].split("?")
    old = Signer(service.home.signing_key, lambda: time.time() - 3601).sign(
        "PUT", f"/signed/uploads/{first['upload_id']}"
    )
    changed = query[:-1] + ("0" if query[-1] != "0" else "1")
    later = query.replace("expires=1", "expires=2", 1)
    other = Signer(service.home.root / "other-key", time.time).sign("PUT", f"/signed/uploads/{first['upload_id']}")
    cases = [
        ("GET", first["url"]),
        ("POST", first["url"]),
        ("DELETE", first["url"]),
        ("PUT", f"{second['url'].split('?')[0]}?{query}"),
        ("PUT", path),
        ("PUT", f"{path}?{changed}"),
        ("PUT", f"{path}?{later}"),
        ("PUT", f"{path}?{query}&x=1"),
        ("PUT", f"{path}?{query}&{query}"),
        ("PUT", f"{path}?expires=x&signature=é"),
        ("PUT", f"{path}?expires={'9' * 400}&signature=0"),
        ("PUT", old),
        ("PUT", other),
    ]
    for method, url in cases:
        answer = bare.request(method, url, content=ROWS)
        assert answer.status_code == 403, (method, url)
        assert ("expired" if url == old else "address") in answer.json()["detail"]
    assert http.put(path, content=ROWS).status_code == 403, "a key opened what needs a signature"
    assert service.uploads.get(first["upload_id"]).state == "initialized"
    assert bare.put(first["url"], content=ROWS).status_code == 200


def test_an_address_is_good_at_our_own_hosts_and_from_our_own_pages_alone(http, bare, service):
    url = presign(http)["url"]
    for header, status in (
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "box.lan"}, 200),
    ):
        assert bare.put(url, content=ROWS, headers=header).status_code == status
    asked = http.post("/api/uploads/presign", json={"filename": "a.csv"}, headers={"Host": "box.lan"})
    assert asked.json()["url"].startswith("http://box.lan/signed/uploads/")
    proxied = {"Host": "box.lan", "X-Forwarded-Proto": "https"}
    asked = http.post("/api/uploads/presign", json={"filename": "a.csv"}, headers=proxied)
    assert asked.json()["url"].startswith("https://box.lan/signed/uploads/")


def test_the_secret_is_private_and_removing_it_ends_every_address(http, bare, service, caplog):
    url = presign(http)["url"]
    assert stat.S_IMODE(service.home.signing_key.stat().st_mode) == 0o600
    assert bare.put(url + "x", content=b"").status_code == 403
    service.home.signing_key.unlink()
    assert bare.put(url, content=ROWS).status_code == 403
    assert "signature=" not in caplog.text


def test_a_file_over_the_limit_is_413_whether_declared_or_not_and_nothing_of_it_stays(http, bare, service):
    asked = presign(http)
    with half_sent(asked["url"], MOST + 1, sent=1) as connection:
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert str(MOST).encode() in answer
    piece = b"x" * 1_000_000
    undeclared = bare.put(asked["url"], content=(piece for _ in range(MOST // len(piece) + 2)))
    assert undeclared.status_code == 413
    assert left_of(service, asked["upload_id"]) == []
    assert bare.put(asked["url"], content=ROWS).status_code == 200


def test_a_large_file_never_stands_in_memory(http, bare, service):
    asked = presign(http, "large.txt")
    piece = b"x" * 999_999 + b"\n"
    tracemalloc.start()
    try:
        sent = bare.put(asked["url"], content=(piece for _ in range(20)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent.json()["bytes"] == 20_000_000
    assert peak < 10_000_000
    assert (service.home.upload(asked["upload_id"]) / "large.txt").stat().st_size == 20_000_000


def test_a_file_that_breaks_off_leaves_nothing_and_can_be_sent_again(http, bare, service):
    asked = presign(http)
    with half_sent(asked["url"]):
        eventually(lambda: service.uploads.get(asked["upload_id"]).state == "uploading")
        busy = bare.put(asked["url"], content=ROWS)
        assert (busy.status_code, "being sent" in busy.json()["detail"]) == (409, True)
    eventually(lambda: service.uploads.get(asked["upload_id"]).state == "initialized")
    eventually(lambda: left_of(service, asked["upload_id"]) == [])
    assert bare.put(asked["url"], content=ROWS).status_code == 200


def test_a_file_has_a_deadline_from_piece_to_piece_and_none_for_the_whole(http, bare, service, monkeypatch):
    monkeypatch.setattr("fusion_tui.api.guard.BODY_DEADLINE_S", 0.4)
    pause = threading.Event()

    def slowly() -> Iterator[bytes]:
        for _ in range(6):
            yield b'{"text": "x"}\n'
            pause.wait(0.1)

    assert bare.put(presign(http)["url"], content=slowly()).status_code == 200
    stalled = presign(http)
    with half_sent(stalled["url"]) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")
    eventually(lambda: service.uploads.get(stalled["upload_id"]).state == "initialized")
    assert left_of(service, stalled["upload_id"]) == []


def test_a_file_with_a_content_encoding_is_refused(http, bare):
    answer = bare.put(presign(http)["url"], content=ROWS, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


@pytest.fixture
def clocked(tmp_path: Path) -> Iterator[tuple[Service, list[float]]]:
    """A service whose clock the test sets."""
    now = [1_800_000_000.0]
    opened = Service(Home(tmp_path / "data"), config=Settings(), clock=lambda: now[0])
    yield opened, now
    opened.close()


def test_what_nobody_used_for_a_day_goes_and_what_is_worked_on_stays(clocked):
    service, now = clocked
    sent, working, ready = (service.uploads.expect(f"{name}.jsonl", "") for name in ("sent", "working", "ready"))
    for upload in (sent, ready):
        reception = service.uploads.receive(upload.id, None)
        reception.write(ROWS)
        reception.finish()
    service.uploads.register(ready.id, "kept")
    reception = service.uploads.receive(working.id, None)
    (service.home.uploads / "orphan").mkdir()
    os.utime(service.home.uploads / "orphan", (now[0], now[0]))
    for left in (importing.stage_of(service.home.dataset(sent.id)), service.home.dataset(sent.id)):
        left.mkdir()  # of an import that a crash broke off
    now[0] += 24 * 3600 - 1
    service.uploads.sweep()
    assert service.uploads.get(sent.id).state == "uploaded"
    now[0] += 2
    fresh = service.uploads.expect("fresh.jsonl", "")
    assert {one.id for one in uploads.everything(service.store.read())} == {working.id, fresh.id}
    assert [path.name for path in service.home.uploads.iterdir()] == [working.id]
    assert [path.name for path in service.home.root.joinpath("datasets").iterdir()] == [ready.id]
    reception.write(ROWS)
    reception.finish()
    assert service.uploads.register(working.id, "late").rows == 2
    assert service.dataset("kept").rows == 2
    with pytest.raises(NotFound):
        service.uploads.receive(sent.id, None)


def test_what_a_crash_broke_off_is_told_as_that_and_can_be_done_again(clocked):
    service, _ = clocked
    upload = service.uploads.expect("a.jsonl", "")
    with service.store.write() as db:
        uploads.move(db, upload.id, before=("initialized",), to="uploading", now=1.0)
    assert service.uploads.get(upload.id).state == "initialized"
    reception = service.uploads.receive(upload.id, None)
    with pytest.raises(Conflict, match="being sent"):
        service.uploads.receive(upload.id, None)
    reception.write(ROWS)
    reception.finish()
    with service.store.write() as db:
        uploads.move(db, upload.id, before=("uploaded",), to="validating", now=1.0)
    assert "interrupted" in service.uploads.get(upload.id).detail["message"]
    service.home.dataset(upload.id).mkdir()  # the crash came between the rows and their entry
    assert service.uploads.register(upload.id, "a").rows == 2


def test_a_file_that_a_crash_left_without_its_state_is_to_be_sent_again_and_can_be(clocked):
    service, _ = clocked
    plain, named = (
        service.uploads.expect("a.jsonl", ""),
        service.uploads.expect("b.jsonl", "", name="b", kind="decoder"),
    )
    ways = {
        plain.id: lambda: service.uploads.register(plain.id, "a"),
        named.id: lambda: service.uploads.process(named.id),
    }
    for upload_id, way in ways.items():
        reception = service.uploads.receive(upload_id, None)
        reception.write(b'{"text": "old"}\n')
        reception.finish()
        with service.store.write() as db:  # as before the commit, and nobody who works on it
            uploads.move(db, upload_id, before=("uploaded",), to="uploading", now=1.0)
        assert service.uploads.get(upload_id).state == "initialized"
        with pytest.raises(Conflict, match=r"broken off\. PUT it to its address again"):
            way()
        again = service.uploads.receive(upload_id, None)
        again.write(ROWS)
        again.finish()
        way()
    eventually(lambda: service.uploads.get(named.id).state == "ready")
    assert [service.dataset(name).rows for name in "ab"] == [2, 2]


def test_a_disk_that_fails_at_any_call_of_a_registration_tells_the_truth_about_it(http, bare, service):
    number = calls = 0
    told = set()
    while calls >= number:
        number += 1
        asked, name = presign(http), f"failing-{number}"
        assert bare.put(asked["url"], content=ROWS).status_code == 200
        with faults.at(number, faults.fail(errno.EIO)) as count:
            answer = http.post("/datasets", json={"name": name, "upload_id": asked["upload_id"]})
        calls = count.calls
        there = [entry["name"] for entry in http.get("/datasets").json()]
        assert (answer.status_code == 201) == (name in there), answer.text
        assert service.uploads.get(asked["upload_id"]).state == ("ready" if name in there else "uploaded")
        told.add(answer.status_code)
    assert calls > 5
    assert told == {201, 503}


def _on_a_full_disk(folder: Path) -> None:
    service = Service(Home(folder / "data"), config=Settings())
    server = ApiServer(service, "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=server.url, headers={"X-API-Key": service.token()}, trust_env=False) as client:
        asked = presign(client)
        filler = disks.fill(folder, leave=1_000_000)
        for content in (b"x" * 3_000_000, (b"x" * 500_000 for _ in range(6))):
            answer = httpx.put(asked["url"], content=content, trust_env=False)
            assert answer.status_code == 503, answer.text
            assert "Free some space" in answer.json()["detail"]
            assert left_of(service, asked["upload_id"]) == []
        assert service.uploads.get(asked["upload_id"]).state == "initialized"
        filler.unlink()
        assert httpx.put(asked["url"], content=b"x" * 3_000_000, trust_env=False).status_code == 200
    server.stop()
    service.close()


def test_a_disk_that_is_full_at_any_call_is_503_and_the_file_can_be_sent_again(http, bare, service):
    number = calls = 0
    while calls >= number:
        number += 1
        asked = presign(http)
        with faults.at(number, faults.fail(errno.ENOSPC), sql=True) as count:
            answer = bare.put(asked["url"], content=ROWS)
        calls = count.calls
        state = service.uploads.get(asked["upload_id"]).state
        if answer.status_code == 503 and state == "initialized":
            assert left_of(service, asked["upload_id"]) == []
            assert bare.put(asked["url"], content=ROWS).status_code == 200
        else:  # all was done, and what failed was not needed, or was the look at it
            assert (state, left_of(service, asked["upload_id"])) == ("uploaded", ["rows.jsonl"])
            assert answer.status_code in (200, 503)
    assert calls > 12


@pytest.mark.slow
def test_a_full_disk_is_503_and_leaves_nothing_behind(tmp_path: Path):
    # Not as the crash tests do it: their processes load the training stack, which this needs not.
    script = (
        "import os, pathlib, sys; from tests.api import test_api_uploads as test; from tests.crash import disks; "
        "folder = pathlib.Path(sys.argv[1]); disks.mount(folder, '32m') or os._exit(disks.NOT_PERMITTED); "
        "test._on_a_full_disk(folder)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if done.returncode == disks.NOT_PERMITTED:
        pytest.skip("this machine lets nobody mount a small disk")
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_read_is_refused_by_its_kind_and_the_file_stays(http, bare, service):
    asked = presign(http, "rows.parquet")
    bare.put(asked["url"], content=json.dumps({"text": "no parquet"}).encode())
    refused = http.post("/datasets", json={"name": "p", "upload_id": asked["upload_id"]})
    assert (refused.status_code, "not readable as Parquet" in refused.json()["detail"]) == (400, True)
    assert service.uploads.get(asked["upload_id"]).state == "uploaded"
