"""Requests that meet: one key from many threads, a store that somebody else writes to, a disk that is full."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui.api.server import ApiServer
from store import catalog
from tests.api.conftest import BASE, DATA
from tests.api.felix import new_key
from tests.crash.disks import fill, on_a_small_disk

THREADS = 32


def at_once(ask: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    """Have as many threads ask at the same moment, each with its number."""
    together = threading.Barrier(THREADS)

    def one(number: int) -> httpx.Response:
        together.wait(30)
        return ask(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, range(THREADS)))


def test_one_key_from_many_threads_with_two_bodies_makes_one_job_and_the_other_body_is_409(http, service, payload):
    before = len(service.jobs())
    bodies = [payload(idempotency_key="raced", hyperparams={"steps": steps}) for steps in (10, 20)]
    answers = at_once(lambda number: http.post("/jobs", json=bodies[number % 2]))
    (job,) = service.jobs()[: len(service.jobs()) - before]
    won = 0 if job.hyperparams["steps"] == 10 else 1
    statuses = [[answer.status_code for answer in answers[body::2]] for body in (won, 1 - won)]
    assert sorted(statuses[0]) == [200] * 15 + [201]
    assert statuses[1] == [409] * 16
    assert {answer.json()["id"] for answer in answers[won::2]} == {job.id}


def test_one_key_in_the_other_dialect_makes_one_job_and_the_other_body_is_422(bare, service):
    before = len(service.jobs())
    bodies = [{"base_model": BASE.id, "datasets": [{"name": DATA.name}], "nr_epochs": epochs} for epochs in (1, 2)]
    secrets = [new_key(service) for _ in range(2)]  # the limit is 20 requests a minute for each
    answers = at_once(
        lambda number: bare.post(
            "/felix/training-jobs",
            json=bodies[number % 2],
            headers={**secrets[number % 2], "Idempotency-Key": "raced-too"},
        )
    )
    (job,) = service.jobs()[: len(service.jobs()) - before]
    ids = [{answer.json().get("id") for answer in answers[body::2]} for body in (0, 1)]
    statuses = [{answer.status_code for answer in answers[body::2]} for body in (0, 1)]
    won = ids.index({job.id})
    assert (statuses[won], statuses[1 - won]) == ({200}, {422})
    (fault,) = next(answer for answer in answers if answer.status_code == 422).json()["detail"]
    assert fault["type"] == "idempotency_key_reused"


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Service, httpx.Client]]:
    """A service that waits for its store a moment only, and a client of its server."""
    monkeypatch.setattr("store.db.BUSY_TIMEOUT_S", 0.1)
    service = Service(Home(tmp_path / "home"), config=Settings())
    with service.store.write() as db:
        catalog.add_base_model(db, BASE)
        catalog.add_dataset(db, DATA)
        catalog.add_dataset(db, replace(DATA, id=str(uuid.UUID(int=9)), name="spare"))
    server = ApiServer(service, "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=server.url, headers=new_key(service), trust_env=False, timeout=20) as client:
        yield service, client
    server.stop()
    service.close()


def writes(job_id: str, key_id: str) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Return a request of each kind that writes to the store."""
    job = {"type": "finetune", "idempotency_key": "busy", "base_model_id": BASE.id, "dataset_id": DATA.id}
    return [
        ("POST", "/jobs", job),
        ("PATCH", f"/jobs/{job_id}", {"notes": "later"}),
        ("POST", f"/jobs/{job_id}/cancel", None),
        ("POST", "/keys", {"name": "new", "scopes": ["read"]}),
        ("DELETE", f"/keys/{key_id}", None),
        ("POST", "/uploads/presign", {"filename": "a.jsonl", "content_type": "application/json"}),
        ("POST", "/felix/training-jobs", {"base_model": BASE.id, "datasets": [{"name": DATA.name}]}),
        ("POST", f"/felix/training-jobs/{job_id}/stop", None),
        ("DELETE", f"/felix/training-jobs/{job_id}", None),
        ("POST", "/felix/datasets/upload/url", {"dataset_name": "d", "dataset_type": "decoder", "filename": "a.jsonl"}),
        ("DELETE", "/felix/datasets/spare", None),
    ]


def test_while_another_program_writes_every_write_is_503_with_a_time_to_return_and_reads_go_on(impatient):
    service, client = impatient
    job = {"type": "finetune", "idempotency_key": "one", "base_model_id": BASE.id, "dataset_id": DATA.id}
    job_id = client.post("/jobs", json=job).json()["id"]
    key_id = client.post("/keys", json={"name": "k", "scopes": ["read"]}).json()["id"]
    with closing(sqlite3.connect(service.home.store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        before = service.version()
        for method, path, body in writes(job_id, key_id):
            answer = client.request(method, path, json=body)
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), (method, path, answer.text)
            assert "busy" in answer.json()["detail"]
        for path in ("/health", "/jobs", f"/jobs/{job_id}/events", "/keys", "/felix/training-jobs", "/felix/datasets"):
            assert client.get(path).status_code == 200, path
        other.execute("ROLLBACK")
    assert service.version() == before
    assert client.get(f"/jobs/{job_id}").json()["status"] == "queued"
    assert client.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"


def begin(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """Begin a module's function in a process that has none of the training libraries to load."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    return process


def ask_on_a_full_disk(disk: Path) -> None:
    """Fill the disk under a server; what it answers, and what is left there once there is room again."""
    service = Service(Home(disk / "home"), config=Settings())
    with service.store.write() as db:
        catalog.add_base_model(db, BASE)
        catalog.add_dataset(db, DATA)
    server = ApiServer(service, "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=server.url, headers=new_key(service), trust_env=False, timeout=20) as client:
        job = {"type": "finetune", "base_model_id": BASE.id, "dataset_id": DATA.id, "notes": "n" * 3000}
        first = client.post("/jobs", json={**job, "idempotency_key": "before"})
        assert first.status_code == 201, first.text
        presigned = client.post("/uploads/presign", json={"filename": "a.txt", "content_type": "text/plain"}).json()
        filler = fill(disk)
        tried = [client.post("/jobs", json={**job, "idempotency_key": str(uuid.uuid4())}) for _ in range(3)]
        tried.append(httpx.put(presigned["url"], content=b"x" * 300_000, trust_env=False))
        for answer in tried:
            assert answer.status_code == 503, answer.text
            assert "space" in answer.json()["detail"]
        assert [one["id"] for one in client.get("/jobs").json()] == [first.json()["id"]]
        assert client.get("/health").status_code == 200
        assert not [path for path in (disk / "home" / "uploads").rglob("*") if path.is_file()]
        filler.unlink()
        assert client.post("/jobs", json={**job, "idempotency_key": "after"}).status_code == 201
        assert httpx.put(presigned["url"], content=b"a row of text\n" * 9, trust_env=False).status_code == 200
        assert len(client.get("/jobs").json()) == 2
    server.stop()
    service.close()


def test_on_a_full_disk_writes_are_503_and_leave_nothing_and_all_goes_on_once_there_is_room(tmp_path):
    on_a_small_disk(tmp_path / "disk", "96m", ask_on_a_full_disk, tmp_path / "disk", begin=begin)
