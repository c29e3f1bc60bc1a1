"""Dialect B's datasets: sent, processed with states that can be watched, listed, looked at, given out, removed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.errors import Conflict
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui.api.server import ApiServer
from store import catalog, uploads
from tests.api.conftest import BASE
from tests.conditions import eventually

CHATS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]} for n in range(12)
]
ROWS = "".join(json.dumps(row) + "\n" for row in CHATS).encode()
UNKNOWN = str(uuid.UUID(int=99))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    opened = Service(Home(tmp_path_factory.mktemp("home") / "data"), config=Settings())
    with opened.store.write() as db:
        catalog.add_base_model(db, BASE)
    yield opened
    opened.close()


@pytest.fixture(scope="module", autouse=True)
def _one_dataset_of_each_name(http: httpx.Client) -> None:
    made(http, "chats")


def ask(http: httpx.Client, name: str, filename: str = "chats.jsonl", kind: str = "decoder") -> dict[str, Any]:
    request = {"dataset_name": name, "dataset_type": kind, "filename": filename}
    answer = http.post("/felix/datasets/upload/url", json=request)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def process(http: httpx.Client, dataset_id: str, **fields: Any) -> httpx.Response:
    return http.post("/felix/datasets/upload/process", json={"dataset_id": dataset_id, **fields})


def ended(http: httpx.Client, name: str, version: int) -> dict[str, Any]:
    """Return the status of a version when it is ready or failed."""

    def status() -> dict[str, Any] | None:
        found: dict[str, Any] = http.get(f"/felix/datasets/{name}/{version}").json()
        return found if found["status"] in ("ready", "failed") else None

    found = eventually(status, within=60)
    assert found
    return found


def sent(http: httpx.Client, name: str, data: bytes = ROWS, filename: str = "chats.jsonl") -> dict[str, Any]:
    asked = ask(http, name, filename)
    assert httpx.put(asked["presigned_url"], content=data, trust_env=False).status_code == 200
    return asked


def made(http: httpx.Client, name: str, data: bytes = ROWS, filename: str = "chats.jsonl") -> dict[str, Any]:
    asked = sent(http, name, data, filename)
    assert process(http, asked["dataset_id"]).status_code == 202
    return ended(http, name, asked["version_number"])


def test_a_dataset_is_asked_for_sent_and_processed_and_both_dialects_see_it(http):
    asked = ask(http, "watched", "chats.csv")
    assert set(asked) == {"presigned_url", "dataset_id", "version_number", "expires_in"}
    assert (asked["version_number"], asked["expires_in"]) == (1, 3600)
    place = "/felix/datasets/watched/1"
    assert http.get(place).json()["status"] == "initialized"
    assert httpx.put(asked["presigned_url"], content=b"text\none\ntwo\n", trust_env=False).status_code == 200
    assert http.get(place).json()["status"] == "uploading"
    assert "watched" not in [entry["name"] for entry in http.get("/datasets").json()]
    told = process(http, asked["dataset_id"])
    assert told.status_code == 202
    assert told.json() == {
        **{"success": True, "dataset_id": asked["dataset_id"], "dataset_name": "watched", "version_number": 1},
        **{"status": "converting", "message": f"GET {place} says how it goes."},
    }
    found = ended(http, "watched", 1)
    (other,) = [entry for entry in http.get("/datasets").json() if entry["name"] == "watched"]
    assert (other["id"], other["rows"], other["status"]) == (asked["dataset_id"], 2, "ready")
    assert found == {
        **{"success": True, "id": asked["dataset_id"], "dataset_name": "watched", "version_number": 1, "size": 33},
        **{"status": "ready", "created_at": other["created_at"], "rows": 2, "format": "text"},
        **{"error": None, "error_row": None},
    }
    assert process(http, asked["dataset_id"]).status_code == 409


def test_the_list_has_every_dataset_once_by_its_newest_version(http, tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROWS)
    http.post("/datasets", json={"name": "listed", "path": str(file)})
    made(http, "listed")
    answer = http.get("/felix/datasets").json()
    assert set(answer) == {"success", "count", "datasets"}
    assert answer["success"] is True
    assert answer["count"] == len(answer["datasets"])
    (entry,) = [entry for entry in answer["datasets"] if entry["dataset_name"] == "listed"]
    assert set(entry) == {"dataset_name", "status", "created_at", "version_number"}
    assert (entry["status"], entry["version_number"]) == ("ready", 2)
    names = [entry["dataset_name"] for entry in answer["datasets"]]
    assert names == sorted(set(names))
    versions = http.get("/felix/datasets/listed").json()
    assert (versions["success"], versions["count"]) == (True, 2)
    assert [version["version_number"] for version in versions["versions"]] == [2, 1]
    documented = {"id", "dataset_name", "version_number", "size", "status", "created_at"}
    assert documented <= set(versions["versions"][0])


def test_a_version_is_kept_from_the_moment_it_is_told(http, tmp_path: Path):
    first, second = sent(http, "kept"), sent(http, "kept")
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROWS)
    third = http.post("/datasets", json={"name": "kept", "path": str(file)}).json()
    assert (first["version_number"], second["version_number"], third["version"]) == (1, 2, 3)
    for asked in (second, first):
        assert process(http, asked["dataset_id"]).status_code == 202
        assert ended(http, "kept", asked["version_number"])["id"] == asked["dataset_id"]
    found = http.get("/felix/datasets/kept").json()["versions"]
    assert [(one["version_number"], one["status"]) for one in found] == [(3, "ready"), (2, "ready"), (1, "ready")]


def test_no_two_who_ask_at_the_same_time_get_the_same_version(http):
    with ThreadPoolExecutor(8) as pool:
        versions = [asked["version_number"] for asked in pool.map(lambda _: ask(http, "crowd"), range(8))]
    assert sorted(versions) == list(range(1, 9))


@pytest.mark.parametrize("kind", ["ner", "classification", "custom"])
def test_what_encoders_learn_from_is_not_in_this_version(http, kind):
    request = {"dataset_name": "spans", "dataset_type": kind, "filename": "a.jsonl"}
    answer = http.post("/felix/datasets/upload/url", json=request)
    assert answer.status_code == 422
    (fault,) = answer.json()["detail"]
    assert (fault["loc"], fault["type"]) == (["body", "dataset_type"], "not_in_this_version")
    assert "not in this version yet" in fault["msg"]
    assert http.get("/felix/datasets/spans").status_code == 404


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("dataset_name", value) for value in ("", "a/b", "x" * 101, 5, None, ".hidden")],
        *[("dataset_type", value) for value in ("text", None, 1)],
        *[("filename", value) for value in ("", "rows", "../rows.csv", "rows.exe", None)],
        ("extra", 1),
    ],
)
def test_a_wrong_field_of_an_upload_is_told(http, field, value):
    request = {"dataset_name": "a", "dataset_type": "decoder", "filename": "a.csv", field: value}
    answer = http.post("/felix/datasets/upload/url", json=request)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", field]


def test_a_bad_row_is_told_by_its_number_and_can_be_left_out(http):
    bad = ROWS + b'{"messages": []}\n' + ROWS
    found = made(http, "bad", bad, "talk.jsonl")
    assert (found["status"], found["error_row"], found["rows"]) == ("failed", 13, None)
    assert "talk.jsonl line 13" in found["error"]
    assert http.get("/felix/datasets/bad/1/preview").status_code == 409
    again = process(http, found["id"], drop_bad=True)
    assert again.status_code == 202
    mended = ended(http, "bad", 1)
    assert (mended["status"], mended["rows"], mended["error"]) == ("ready", 24, None)


def test_what_has_not_come_or_is_not_there_cannot_be_processed(http):
    asked = ask(http, "early")
    assert process(http, asked["dataset_id"]).status_code == 409
    assert process(http, UNKNOWN).status_code == 404
    assert process(http, "x").status_code == 422
    other = http.post("/uploads/presign", json={"filename": "a.csv"}).json()["upload_id"]
    assert process(http, other).status_code == 409
    wrong_way = http.post("/datasets", json={"name": "a", "upload_id": asked["dataset_id"]})
    assert (wrong_way.status_code, "upload/process" in wrong_way.json()["detail"]) == (409, True)


@pytest.mark.parametrize("words", ["converting", "validating"])
def test_a_processing_that_a_crash_interrupted_is_failed_and_can_be_done_again(http, service, words):
    asked = sent(http, f"crashed-{words}")
    with service.store.write() as db:  # what a crash leaves: the state, and nobody who works on it
        uploads.move(db, asked["dataset_id"], before=("uploaded",), to=words, now=1.0)
    found = http.get(f"/felix/datasets/crashed-{words}/1").json()
    assert (found["status"], "Process it again" in found["error"]) == ("failed", True)
    assert process(http, asked["dataset_id"]).status_code == 202
    assert ended(http, f"crashed-{words}", 1)["status"] == "ready"


def processing() -> int:
    """Return how many threads process uploads."""
    return [thread.name for thread in threading.enumerate()].count("uploads")


def test_files_are_processed_one_after_another_and_a_stop_can_be_taken_up_again(tmp_path: Path):
    before = processing()
    service = Service(Home(tmp_path / "data"), config=Settings())
    server = ApiServer(service, "127.0.0.1", 0)
    server.start()
    long = b'{"text": "a row of a long file, of which there are many"}\n' * 200_000
    with httpx.Client(base_url=server.url, headers={"X-API-Key": service.token()}, trust_env=False) as http:
        first, second = sent(http, "long", long), sent(http, "waits")
        for asked in (first, second):
            assert process(http, asked["dataset_id"]).status_code == 202
            again = process(http, asked["dataset_id"])
            assert (again.status_code, "processed already" in again.json()["detail"]) == (409, True)
            assert http.delete(f"/felix/datasets/{'long' if asked is first else 'waits'}/1").status_code == 409
        eventually(lambda: http.get("/felix/datasets/long/1").json()["status"] == "validating", within=60)
        assert http.get("/felix/datasets/waits/1").json()["status"] == "converting"
    server.stop()
    service.close()
    assert processing() == before
    opened = Service(Home(tmp_path / "data"), config=Settings())
    for name in ("long", "waits"):
        version = opened.uploads.version(name, 1)
        assert (version.state, "interrupted" in version.detail["message"]) == ("failed", True)
    assert opened.datasets()[0].name == "starter"
    opened.uploads.process(second["dataset_id"])
    eventually(lambda: opened.uploads.version("waits", 1).state == "ready", within=60)
    opened.close()


def process_a_long_file(folder: Path) -> None:
    """Begin, in a process of its own, to process a file that takes long."""
    service = Service(Home(folder), config=Settings())
    upload = service.uploads.expect("long.jsonl", "", name="long", kind="decoder")
    reception = service.uploads.receive(upload.id, None)
    for _ in range(20):
        reception.write(b'{"text": "a row of a long file, of which there are many"}\n' * 10_000)
    reception.finish()
    service.uploads.process(upload.id)
    threading.Event().wait()


@pytest.mark.slow
def test_a_server_that_is_killed_while_it_processes_leaves_what_can_be_processed_again(tmp_path: Path):
    script = "import pathlib, sys; from tests.api import test_felix_datasets as t; t.process_a_long_file"
    command = [sys.executable, "-c", f"{script}(pathlib.Path(sys.argv[1]))", str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as server:
        service = Service(Home(tmp_path / "data"), config=Settings())

        def state() -> str:
            return next((version.state for version in service.uploads.versions("long")), "")

        eventually(lambda: state() == "validating", within=60)
        with pytest.raises(Conflict, match="processed already"):
            service.uploads.process(service.uploads.version("long", 1).id)
        server.kill()
    version = service.uploads.version("long", 1)
    assert (version.state, "Process it again" in version.detail["message"]) == ("failed", True)
    service.uploads.process(version.id)
    eventually(lambda: state() == "ready", within=60)
    assert service.dataset("long").rows == 200_000
    assert [path.name for path in (service.home.root / "datasets").iterdir()] == [version.id]
    service.close()


def test_the_first_rows_are_shown(http):
    answer = http.get("/felix/datasets/chats/1/preview", params={"limit": 3}).json()
    assert answer == {
        **{"success": True, "dataset_name": "chats", "version_number": 1},
        **{"count": 3, "rows": CHATS[:3]},
    }
    assert http.get("/felix/datasets/chats/1/preview").json()["count"] == 10
    for limit in ("0", "101", "x"):
        assert http.get("/felix/datasets/chats/1/preview", params={"limit": limit}).status_code == 422


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_a_dataset_is_given_out_and_comes_back_the_same(http, format):
    answer = http.get("/felix/datasets/chats/1/download", params={"format": format})
    assert answer.status_code == 200
    assert f'filename="chats-v1.{format}"' in answer.headers["content-disposition"]
    found = made(http, f"again-{format}", answer.content, f"again.{format}")
    assert found["rows"] == len(CHATS), found
    rows = http.get(f"/felix/datasets/again-{format}/1/preview", params={"limit": 100}).json()["rows"]
    assert rows == CHATS


def test_jsonl_is_the_default_and_other_formats_are_refused(http):
    assert http.get("/felix/datasets/chats/1/download").content == ROWS
    assert http.get("/felix/datasets/chats/1/download", params={"format": "xml"}).status_code == 422


def test_what_is_not_there_is_404_and_a_version_is_a_number(http):
    for path in ("nothing", "nothing/1", "chats/99", "nothing/1/preview", "nothing/1/download"):
        assert http.get(f"/felix/datasets/{path}").status_code == 404
    assert http.get("/felix/datasets/chats/one").status_code == 422
    assert http.get("/felix/datasets/chats/0").status_code == 422
    assert http.delete("/felix/datasets/nothing").status_code == 404
    assert http.delete("/felix/datasets/chats/99").status_code == 404


def test_a_version_is_removed_unless_a_job_reads_it(http, payload: Callable[..., dict[str, Any]]):
    first = made(http, "used")
    made(http, "used")
    job = http.post("/jobs", json=payload(dataset_id=first["id"])).json()
    refused = http.delete("/felix/datasets/used/1")
    assert (refused.status_code, job["name"] in refused.json()["detail"]) == (409, True)
    assert http.delete("/felix/datasets/used").status_code == 409
    assert http.get("/felix/datasets/used").json()["count"] == 2
    gone = http.delete("/felix/datasets/used/2")
    assert (gone.status_code, gone.json()["success"], set(gone.json())) == (200, True, {"success", "message"})
    http.post(f"/jobs/{job['id']}/cancel")
    waiting = ask(http, "used")
    assert http.delete("/felix/datasets/used").json()["success"] is True
    assert http.get("/felix/datasets/used").status_code == 404
    assert httpx.put(waiting["presigned_url"], content=ROWS, trust_env=False).status_code == 404


def test_each_scope_opens_its_own_routes_alone(bare, key_with):
    read, datasets = key_with("read"), key_with("datasets")
    request = {"dataset_name": "scoped", "dataset_type": "decoder", "filename": "a.csv"}
    assert bare.post("/felix/datasets/upload/url", json=request, headers=read).status_code == 403
    asked = bare.post("/felix/datasets/upload/url", json=request, headers=datasets).json()
    for method, path in (("GET", ""), ("GET", "/scoped"), ("GET", "/scoped/1"), ("GET", "/chats/1/download")):
        assert bare.request(method, f"/felix/datasets{path}", headers=datasets).status_code == 403
        assert bare.request(method, f"/felix/datasets{path}", headers=read).status_code == 200
    body = {"dataset_id": asked["dataset_id"]}
    assert bare.post("/felix/datasets/upload/process", json=body, headers=read).status_code == 403
    assert bare.delete("/felix/datasets/scoped/1", headers=read).status_code == 403
    assert bare.delete("/felix/datasets/scoped/1", headers=datasets).status_code == 200


def test_a_dataset_whose_rows_somebody_took_away_is_404(http, service):
    found = made(http, "taken")
    Path(service.dataset("taken").path).unlink()
    for part in ("preview", "download"):
        assert http.get(f"/felix/datasets/{found['dataset_name']}/1/{part}").status_code == 404
