"""A job's stream of events: what it starts with, what comes, how it goes on, how it ends, what it leaves behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fastapi.routing
import httpx
import pytest

from engine.service import Service
from fusion_tui.api import following
from fusion_tui.api.server import ApiServer
from store import jobs, states, telemetry
from store.telemetry import Point
from tests.conditions import eventually

Event = tuple[str, dict[str, Any], str]  # name, data, id


class Stream:
    """An open stream, read line by line."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def next(self) -> Event | None:
        """Return the next event, or None at the end."""
        fields: dict[str, str] = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if not line and "event" in fields:
                return fields["event"], json.loads(fields["data"]), fields["id"]
            fields[name] = value
        return None

    def comment(self) -> str:
        """Return the next line that is a comment."""
        return next(line for line in self._lines if line.startswith(":"))


@contextmanager
def opened(http: httpx.Client, job_id: str, query: str = "", **headers: str) -> Iterator[Stream]:
    with http.stream("GET", f"/jobs/{job_id}/stream{query}", headers=headers) as response:
        if response.status_code == 200:
            assert response.headers["content-type"].startswith("text/event-stream")
        yield Stream(response)


def report(service: Service, job_id: str, *steps: int) -> None:
    with service.store.write() as db:
        points = [Point(step, "train", float(step), loss=1.0 / step) for step in steps]
        telemetry.add_points(db, job_id, 0, points)


def say(service: Service, job_id: str, *texts: str) -> None:
    with service.store.write() as db:
        telemetry.add_log_lines(db, job_id, [(1.0, "stdout", text) for text in texts])


def listening(api: ApiServer) -> int:
    return api._server.config.app.state.commits.listening


@pytest.fixture
def running(service: Service, job_id: str) -> Iterator[str]:
    with service.store.write() as db:
        for state in (states.PROVISIONING, states.STAGING, states.RUNNING):
            jobs.transition(db, job_id, state, fence=0, now=1.0)
    yield job_id
    finish(service, job_id)


def finish(service: Service, job_id: str) -> None:
    with service.store.write() as db:
        jobs.transition(db, job_id, states.CANCELLED, fence=0, now=9.0, finished_at=9.0)


def test_only_what_is_new_comes_and_the_end_is_told(http, service, api, running):
    report(service, running, 1, 2)
    say(service, running, "before")
    with opened(http, running) as stream:
        eventually(lambda: listening(api) == 1)
        report(service, running, 3)
        name, metrics, _ = stream.next()
        assert (name, [point["step"] for point in metrics["points"]], metrics["latest_step"]) == ("metrics", [3], 3)
        say(service, running, "after")
        name, logs, _ = stream.next()
        assert (name, [line["text"] for line in logs["lines"]], logs["latest_seq"]) == ("log", ["after"], 2)
        finish(service, running)
        name, state, _ = stream.next()
        assert (name, state["payload"]["to"]) == ("state", "cancelled")
        name, job, _ = stream.next()
        assert (name, job) == ("end", http.get(f"/jobs/{running}").json())
        assert stream.next() is None
    eventually(lambda: listening(api) == 0, what="the stream is let go of")


def test_it_starts_behind_what_the_client_has(http, service, running):
    report(service, running, 1, 2, 3)
    say(service, running, "one", "two")
    with opened(http, running, "?since_step=1&since=1") as stream:
        (log, lines, _), (metrics, points, _) = stream.next(), stream.next()
    assert (log, [line["text"] for line in lines["lines"]]) == ("log", ["two"])
    assert (metrics, [point["step"] for point in points["points"]]) == ("metrics", [2, 3])
    assert points == http.get(f"/jobs/{running}/metrics?since_step=1").json()


def test_the_id_of_the_last_event_goes_on_behind_it_without_gap_or_repetition(http, service, running):
    report(service, running, 1)
    with opened(http, running, "?since_step=-1") as stream:
        assert stream.next()[0] == "metrics"
        say(service, running, "one")
        _, _, last = stream.next()
    report(service, running, 2)
    say(service, running, "two")
    finish(service, running)
    with opened(http, running, **{"Last-Event-ID": last}) as stream:
        found = [stream.next() for _ in range(4)]
        assert stream.next() is None
    assert [name for name, _, _ in found] == ["state", "log", "metrics", "end"]
    assert [line["text"] for line in found[1][1]["lines"]] == ["two"]
    assert [point["step"] for point in found[2][1]["points"]] == [2]
    with opened(http, running, **{"Last-Event-ID": found[-1][2]}) as stream:
        assert stream.next()[0] == "end"


def test_after_a_resume_the_steps_since_then_come_again(http, service, running):
    report(service, running, 1, 2, 3)
    with opened(http, running, "?since_step=3") as stream, service.store.write() as db:
        telemetry.forget_after(db, running, 1)
        jobs.add_event(db, running, "resume", {"step": 1}, now=2.0)
        telemetry.add_points(db, running, 0, [Point(2, "train", 5.0, loss=0.5)])
    with opened(http, running, "?since_step=3", **{"Last-Event-ID": "3:0:1:0.0"}) as stream:
        while (event := stream.next()) and event[0] != "metrics":
            pass
    assert [point["step"] for point in event[1]["points"]] == [2]


def test_points_of_other_phases_come_once(http, service, running):
    with service.store.write() as db:
        telemetry.add_points(db, running, 0, [Point(7, "grow", 3.0, loss=1.0)])
    with opened(http, running, "?since_step=-1") as stream:
        assert [point["phase"] for point in stream.next()[1]["points"]] == ["grow"]
        say(service, running, "x")
        assert stream.next()[0] == "log"
        report(service, running, 1)
        assert [point["phase"] for point in stream.next()[1]["points"]] == ["train"]


def test_without_a_place_nothing_old_comes_of_other_phases_either(http, service, api, running):
    with service.store.write() as db:
        telemetry.add_points(db, running, 0, [Point(7, "grow", 3.0, loss=1.0)])
    with opened(http, running) as stream:
        eventually(lambda: listening(api) == 1)
        with service.store.write() as db:
            telemetry.add_points(db, running, 0, [Point(8, "grow", 4.0, loss=1.0)])
        assert [point["step"] for point in stream.next()[1]["points"]] == [8]


def test_a_long_curve_comes_in_parts_and_the_end_behind_them(http, service, running):
    count = 2 * following.MOST_POINTS + 1
    with service.store.write() as db:
        grown = [Point(step, "grow", float(step)) for step in (1, 2)]
        telemetry.add_points(db, running, 0, [*grown, *(Point(n, "train", 9.0) for n in range(1, count + 1))])
    finish(service, running)
    told = []
    with opened(http, running, "?since_step=-1&since=0") as stream:
        while (event := stream.next()) and event[0] != "end":
            told += [event[1]["points"]] if event[0] == "metrics" else []
        assert stream.next() is None
    assert [len(points) for points in told] == [following.MOST_POINTS + 2, following.MOST_POINTS, 1]
    assert [point["step"] for points in told for point in points if point["phase"] == "train"] == [*range(1, count + 1)]


def test_a_key_that_is_revoked_loses_its_streams(service, api, bare, running, key_with):
    narrow = key_with("read")
    key = service.authenticate(narrow["X-API-Key"])
    with opened(bare, running, **narrow) as stream:
        eventually(lambda: listening(api) == 1)
        service.revoke_key(key.id)
        eventually(lambda: listening(api) == 0, what="the stream ends")
        assert stream.next() is None
    assert bare.get(f"/jobs/{running}", headers=narrow).status_code == 401


def test_a_comment_comes_when_nothing_else_does(http, running, monkeypatch):
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    with opened(http, running) as stream:
        assert stream.comment().startswith(":")


def test_what_cannot_be_streamed_is_said_before_there_is_a_stream(http, bare, running):
    unknown = "00000000-0000-0000-0000-0000000000ff"
    for path, status in ((f"/jobs/{unknown}/stream", 404), ("/jobs/x/stream", 404)):
        assert http.get(path).status_code == status
    for query in ("since_step=-2", "since=x"):
        assert http.get(f"/jobs/{running}/stream?{query}").status_code == 422
    for wrong in ("1", "1:2:3", "1:2:3:4.0:5", "a:b:c:d", "9" * 30 + ":1:1:0.0"):
        answer = http.get(f"/jobs/{running}/stream", headers={"Last-Event-ID": wrong})
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["header", "last-event-id"])
    assert bare.get(f"/jobs/{running}/stream").status_code == 401


def test_thirty_streams_are_served_and_closing_them_frees_everything(http, service, api, running):
    before = threading.active_count()
    clients = [
        httpx.Client(base_url=http.base_url, headers=http.headers, trust_env=False, timeout=20) for _ in range(30)
    ]
    entered = [opened(client, running) for client in clients]
    streams = [one.__enter__() for one in entered]
    eventually(lambda: listening(api) == 30)
    report(service, running, 40)
    assert {stream.next()[1]["latest_step"] for stream in streams} == {40}
    assert http.get(f"/jobs/{running}").status_code == 200
    for one, client in zip(entered, clients, strict=True):
        one.__exit__(None, None, None)
        client.close()
    eventually(lambda: listening(api) == 0, what="every stream is let go of")
    assert threading.active_count() <= before + 45  # the pool's forty, which end when idle


def test_a_deleted_job_ends_its_stream(http, service, job_id):
    with opened(http, job_id) as stream:
        with service.store.write() as db:
            jobs.delete(db, job_id)
        assert stream.next() is None


def test_the_servers_stop_ends_the_streams_at_once(service, running):
    server = ApiServer(service, "127.0.0.1", 0)
    server.start()
    commits = server._server.config.app.state.commits
    with (
        httpx.Client(
            base_url=server.url, headers={"X-API-Key": service.token()}, trust_env=False, timeout=20
        ) as client,
        opened(client, running) as stream,
    ):
        eventually(lambda: commits.listening == 1)
        # What answers longer is cut off after three seconds; after so many, that is not how it ended.
        server._server.config.timeout_graceful_shutdown = 600
        serving, stopper = server._thread, threading.Thread(target=server.stop)
        stopper.start()
        assert stream.next() is None
        stopper.join(60)
        assert not stopper.is_alive()
        assert serving
        assert not serving.is_alive()
