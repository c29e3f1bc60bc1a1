"""What no client sends by mistake: every case is answered or hung up on in time, changes nothing, and hurts nobody.

After each: no status of 500 or above, not one commit in the store, no file come or gone, nothing logged as an error,
and the next client is served.
"""

from __future__ import annotations

import logging
import select
import socket
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import psutil
import pytest

from engine.service import Service
from fusion_tui.api import guard, wire
from fusion_tui.api.server import ApiServer
from tests.api.hostile import CASES, CHUNKED, HOST, POST, READ, SLOW, get, post
from tests.api.raw import Wire
from tests.conditions import eventually


class Target:
    """The server under attack, and what must be as before after every case."""

    def __init__(self, server: ApiServer, service: Service) -> None:
        self.server = server
        self.port = int(server.url.rpartition(":")[2])
        self._service = service
        self._key = service.token()
        self._words = self._known()

    def _known(self) -> dict[bytes, str]:
        with closing(sqlite3.connect(self._service.home.store)) as db:
            id_, prefix, hashed = db.execute("SELECT id, prefix, secret_hash FROM keys ORDER BY created_at").fetchone()
        words = {"HOST": f"127.0.0.1:{self.port}", "KEY": self._key, "UPPER": self._key.upper()}
        words |= {"HASH": hashed, "PREFIX": prefix, "ID": id_}
        return {f"@{name}@".encode(): word for name, word in words.items()}

    def bytes_of(self, data: bytes) -> bytes:
        for name, word in self._words.items():
            data = data.replace(name, word.encode())
        return data

    def state(self) -> tuple[object, ...]:
        """Return all that a request could change: what was committed, every row, every file."""
        with closing(sqlite3.connect(self._service.home.store)) as db:
            rows = tuple(db.iterdump())
        beside = {"store.db-wal", "store.db-shm", "store.db-journal"}
        files = sorted(
            (str(path), path.stat().st_size)
            for path in self._service.home.root.rglob("*")
            if path.is_file() and path.name not in beside
        )
        return self._service.version(), rows, files

    def connections(self) -> int:
        """Return how many connections the server holds: it is in this process."""
        open_ones = psutil.Process().net_connections("tcp")
        return sum(one.laddr.port == self.port and one.status != psutil.CONN_LISTEN for one in open_ones)

    def serves(self) -> bool:
        """Say whether a new client gets its answer."""
        with Wire(self.port) as client:
            client.send(self.bytes_of(get(b"/health", HOST)))
            answer = client.answer()
        return answer is not None and answer.status == 200


@pytest.fixture(scope="module")
def target(api: ApiServer, service: Service) -> Target:
    return Target(api, service)


@contextmanager
def unharmed(target: Target, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check around a case that it changed nothing, left no error in the log, and that the server goes on."""
    before = target.state()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        yield
        assert target.serves()
    assert target.state() == before
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == []
    assert target._key not in caplog.text


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_request_gets_the_status_that_the_design_has_for_it(target, caplog, name):
    data, statuses = CASES[name]
    with unharmed(target, caplog):
        with Wire(target.port) as client:
            client.send(target.bytes_of(data))
            answer = client.answer(data.split(b" ")[0].decode("latin-1"))
        assert (answer.status if answer else None) in statuses
        if answer is not None and answer.status >= 400:
            assert answer.detail
            assert not [header for header in answer.headers if header.startswith("access-control")]


@pytest.fixture
def brisk(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """A server that loses its patience soon: every deadline is a fraction of a second."""
    for place, name in ((wire, "HEADER_DEADLINE_S"), (wire, "READ_DEADLINE_S"), (guard, "BODY_DEADLINE_S")):
        monkeypatch.setattr(place, name, 0.4)
    monkeypatch.setattr("fusion_tui.api.server.KEEP_ALIVE_S", 0.4)
    server = ApiServer(service, "127.0.0.1", 0)
    server.start()
    yield Target(server, service)
    server.stop()


def statuses_in(received: bytes) -> list[int]:
    found = [int(line[9:12]) for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    return [status for status in found if status != 100]


def test_whatever_does_not_end_is_hung_up_on_at_its_deadline(brisk, caplog):
    received = dict.fromkeys(SLOW, b"")
    with unharmed(brisk, caplog), ExitStack() as open_ones:
        wires = {name: open_ones.enter_context(Wire(brisk.port)) for name in SLOW}
        for name, client in wires.items():
            client.send(brisk.bytes_of(SLOW[name][0]))
        left = dict(wires)
        deadline = time.monotonic() + 30  # for a slow machine; the server's own are the only ones that there are
        while left:
            assert time.monotonic() < deadline, f"still open: {sorted(left)}"
            readable, _, _ = select.select([client.socket for client in left.values()], [], [], 0.02)
            for name, client in list(left.items()):
                if client.socket not in readable:
                    client.send(SLOW[name][1])
                    continue
                part = client.take()
                received[name] += part
                if not part:
                    del left[name]
    assert {name: statuses_in(data) for name, data in received.items()} == {n: SLOW[n][2] for n in SLOW}


def test_a_client_that_takes_no_answer_is_hung_up_on_and_one_that_takes_it_slowly_is_served(brisk, caplog):
    ask = brisk.bytes_of(get(b"/openapi.json", HOST))
    with Wire(brisk.port) as client:
        client.send(ask)
        answer = client.answer()
        assert answer is not None
    times = 7_000_000 // len(answer.body)  # more than the buffers of both ends hold
    whole = len(answer.body) * times
    with unharmed(brisk, caplog), Wire(brisk.port, window=4096) as deaf, Wire(brisk.port, window=32768) as slow:
        for client in (deaf, slow):
            client.send(ask * times)
        hang_up = select.poll()
        hang_up.register(deaf.socket, 0)
        taken = 0
        while taken < whole:
            hang_up.poll(2)
            part = slow.take()
            assert part, f"hung up on after {taken} bytes"
            taken += len(part)
        events = eventually(lambda: hang_up.poll(0), what="a reset")
        assert events[0][1] & (select.POLLHUP | select.POLLERR)


def test_idle_connections_beyond_the_limit_are_told_or_hung_up_on_and_the_rest_time_out(brisk, caplog, monkeypatch):
    monkeypatch.setattr(wire, "HEADER_DEADLINE_S", 1.5)
    most = wire.MAX_CONNECTIONS + wire.MAX_REFUSALS
    with unharmed(brisk, caplog), ExitStack() as open_ones:
        idle = [open_ones.enter_context(Wire(brisk.port)) for _ in range(most + 40)]
        assert all(client.hung_up() for client in idle[most:])
        for client in idle[wire.MAX_CONNECTIONS : most]:
            client.send(brisk.bytes_of(get(b"/health", HOST)))
            answer = client.answer()
            assert answer is not None
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert brisk.connections() <= wire.MAX_CONNECTIONS
        assert all(client.hung_up() for client in idle[:3])
        eventually(brisk.serves)


@pytest.fixture
def patient(target: Target, monkeypatch: pytest.MonkeyPatch) -> Target:
    """The server with deadlines that no test lives to see: what it does at once, it does not do for one of these."""
    for place, name in ((wire, "HEADER_DEADLINE_S"), (wire, "READ_DEADLINE_S"), (guard, "BODY_DEADLINE_S")):
        monkeypatch.setattr(place, name, 600.0)
    monkeypatch.setattr(target.server._server.config, "timeout_keep_alive", 600)
    return target


@pytest.mark.parametrize("abruptly", [False, True])
def test_clients_that_leave_in_the_middle_of_a_body_are_no_error(patient, caplog, abruptly):
    before = patient.connections()
    with unharmed(patient, caplog):
        for head in (POST + b"Content-Length: 100\r\n\r\n", CHUNKED + b"64\r\n"):
            for _ in range(10):
                with Wire(patient.port) as client:
                    client.send(patient.bytes_of(head + b'{"type"'))
                    if abruptly:
                        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: patient.connections() <= before)


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", get(b"/jobs"), POST + b'Content-Length: 50\r\n\r\n{"type'])
def test_a_client_that_closes_its_half_is_answered_or_hung_up_on_at_once(patient, caplog, sent):
    with unharmed(patient, caplog), Wire(patient.port) as client:
        client.send(patient.bytes_of(sent))
        client.socket.shutdown(socket.SHUT_WR)
        began = time.monotonic()
        answer = client.answer()
        assert client.hung_up()
        assert time.monotonic() - began < 60
    assert answer is None or answer.status < 500


def test_pipelined_requests_are_answered_in_their_order_and_none_after_a_bad_one(target, caplog, http, job_id):
    cancel = b"POST /jobs/" + job_id.encode() + b"/cancel HTTP/1.1\r\n" + READ + b"\r\n"
    good = [get(b"/health", HOST), get(b"/jobs", HOST), post(b"{}"), get(b"/nothing"), get(b"/jobs?limit=1")] * 10
    with unharmed(target, caplog), Wire(target.port) as client:
        client.send(target.bytes_of(b"".join([*good, b"GET / HTTP/1.1 oops\r\n\r\n", cancel])))
        answers = [client.answer() for _ in range(len(good) + 1)]
        assert [answer and answer.status for answer in answers] == [200, 401, 422, 404, 200] * 10 + [400]
        assert client.hung_up()
    assert http.get(f"/jobs/{job_id}").json()["status"] == "queued"


@pytest.mark.parametrize("headers", [HOST, HOST + b"Expect: 100-continue\r\n", b"Host: evil.example\r\n"])
def test_the_body_of_a_refused_request_is_never_read_as_a_request(target, caplog, http, job_id, headers):
    cancel = b"POST /jobs/" + job_id.encode() + b"/cancel HTTP/1.1\r\n" + READ + b"\r\n"
    body = target.bytes_of(cancel)
    refused = b"POST /jobs HTTP/1.1\r\n" + headers + b"Content-Length: %d\r\n\r\n" % len(body)
    with unharmed(target, caplog), Wire(target.port) as client:
        client.send(target.bytes_of(refused))
        answer = client.answer()
        client.send(body + target.bytes_of(get(b"/health", HOST + b"Connection: close\r\n")))
        following = client.answer()
        assert client.hung_up()
    assert answer is not None
    assert answer.status in (401, 421)
    assert following is None or following.status == 200  # that of /health: the body was passed over
    assert http.get(f"/jobs/{job_id}").json()["status"] == "queued"


def test_a_body_is_asked_for_only_after_the_head_has_passed(target, caplog):
    waiting = b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    with unharmed(target, caplog):
        with Wire(target.port) as client:
            client.send(target.bytes_of(POST + waiting))
            assert client.take().startswith(b"HTTP/1.1 100")
            client.send(b"{}")
            assert client.take().startswith(b"HTTP/1.1 422")
        with Wire(target.port) as client:
            client.send(target.bytes_of(POST.replace(b"@KEY@", b"wrong") + waiting))
            assert client.take().startswith(b"HTTP/1.1 401")


def test_the_line_and_the_headers_may_both_be_as_long_as_they_are_allowed_in_any_pieces(target, caplog):
    line = b"/jobs?limit=1&x=" + b"x" * (8_192 - 19)
    filler = b"X: " + b"x" * 15_000 + b"\r\n"
    data = target.bytes_of(get(line, READ + filler))
    with unharmed(target, caplog), Wire(target.port) as client:
        for start in range(0, len(data), 1000):
            client.send(data[start : start + 1000])
            select.select([], [], [], 0.002)  # apart, so that the server meets it in pieces
        answer = client.answer()
    assert answer is not None
    assert answer.status == 200
