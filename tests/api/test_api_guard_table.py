"""Host × Origin × Sec-Fetch-Site × method × key, every cell, on a server bound here and on one bound wider.

What a cell should give is written out below from the design's words ("What guards the port"), cell by cell of each
axis, and owes nothing to the guard: the hosts and origins that may pass are listed, not matched.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pytest

from engine.service import Service
from fusion_tui.api import guard, wire
from fusion_tui.api.server import ApiServer
from tests.api.raw import Wire, head

# True: the header names this server. `@` stands for the server's port.
HOSTS = {
    "127.0.0.1:@": True,
    "box.lan": True,
    "127.0.0.1": False,
    "evil.example:@": False,
}
MORE_HOSTS = {
    "localhost:@": True,
    "[::1]:@": True,
    "localhost.evil.example:@": False,
    "LOCALHOST:@": True,
    "Box.LAN:80": True,
    "box.lan:@": True,
    "proxy.lan:9000": True,
    "proxy.lan": False,
    "proxy.lan:9001": False,
    "proxy.lan:@": False,
    "127.0.0.1:1": False,
    "localhost": False,
    "localhost:80": False,
    "[::1]": False,
    "::1:@": False,
    "0.0.0.0:@": False,
    "[::]:@": False,
    "127.0.0.2:@": False,
    "127.1:@": False,
    "2130706433:@": False,
    "0x7f000001:@": False,
    "[::ffff:127.0.0.1]:@": False,
    "127.0.0.1.:@": False,
    "localhost.:@": False,
    "box.lan.": False,
    "127.0.0.1:@@evil.example": False,
    "evil.example@127.0.0.1:@": False,
    "evil.example#127.0.0.1:@": False,
    "127.0.0.1:@/": False,
    "127.0.0.1:@, evil.example": False,
    "127.0.0.1:+@": False,
    "127.0.0.1:000000@": False,
    "127.0.0.1:": False,
    "127.0.0.1: @": False,
    "ｌocalhost:@": False,
    "löcalhost:@": False,
    "": False,
}
ORIGINS = {
    None: True,
    "http://127.0.0.1:@": True,
    "https://box.lan": True,
    "null": False,
    "http://evil.example": False,
    "http://127.0.0.1:1": False,
}
MORE_ORIGINS = {
    "http://localhost:@": True,
    "https://localhost:@": True,
    "HTTP://LOCALHOST:@": False,  # no browser writes it so
    "http://[::1]:@": True,
    "http://box.lan:8080": True,
    "http://proxy.lan:9000": True,
    "http://proxy.lan": False,
    "http://localhost": False,
    "https://127.0.0.1": False,
    "http://127.0.0.1:@.evil.example": False,
    "http://127.0.0.1:@@evil.example": False,
    "http://evil.example:@": False,
    "http://box.lan.evil.example": False,
    "127.0.0.1:@": False,
    "//127.0.0.1:@": False,
    "file://": False,
    "file://127.0.0.1:@": False,
    "chrome-extension://127.0.0.1:@": False,
    "http://127.0.0.1:@ http://evil.example": False,
    "": False,
}
SITES = {None: True, "same-origin": True, "none": True, "same-site": False, "cross-site": False}
MORE_SITES = {"": False, "Same-Origin": False, "same-origin, cross-site": False, "navigate": False}
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "BREW")
KEYS = ("bearer", "x-api-key", "wrong", "none")

# Only reading is safe; each of these three changes nothing on any path.
SAFE = {"GET", "HEAD", "OPTIONS"}
# What `/jobs` gives once everything before it has passed: it lists, it takes a JSON body, and knows nothing else.
PAST_THE_GUARD = {"GET": 200, "POST": 415}


class Cell(NamedTuple):
    """One request: its headers as they are sent, and whether the design says that each may pass."""

    host: str
    host_may: bool
    origin: str | None
    origin_may: bool
    site: str | None
    site_may: bool
    method: str
    key: str

    def status(self) -> int:
        """Say what the design says: the host first, for every method; then, where it could change things, who sent
        the page; then the key, for reads too; then the route."""
        if not self.host_may:
            return 421
        if self.method not in SAFE and not (self.origin_may and self.site_may):
            return 403
        if self.key in ("wrong", "none"):
            return 401
        return PAST_THE_GUARD.get(self.method, 405)

    def request(self, port: int, secret: str, path: str) -> bytes:
        """Return its bytes."""
        sent = [("Host", self.host), ("Origin", self.origin), ("Sec-Fetch-Site", self.site)]
        key = {
            "bearer": [("Authorization", f"Bearer {secret}")],
            "x-api-key": [("X-API-Key", secret)],
            "wrong": [("Authorization", f"Bearer {secret}x")],
            "none": [],
        }[self.key]
        given = [(name, value.replace("@", str(port), 1)) for name, value in sent if value is not None]
        return head(self.method, path, [*given, *key])


def cells(
    hosts: dict[str, bool],
    origins: dict[str | None, bool],
    sites: dict[str | None, bool],
    methods: Sequence[str] = METHODS,
    keys: Sequence[str] = KEYS,
) -> Iterator[Cell]:
    for host, origin, site, method, key in itertools.product(
        hosts.items(), origins.items(), sites.items(), methods, keys
    ):
        yield Cell(*host, *origin, *site, method, key)


def ask_all(server: ApiServer, secret: str, asked: Iterable[Cell], path: str = "/jobs") -> list[tuple[Cell, int]]:
    """Send every cell over one connection; return those with another status than the design's, with what came."""
    port = int(server.url.rpartition(":")[2])
    wrong = []
    with Wire(port) as wire:
        for cell in asked:
            wire.send(cell.request(port, secret, path))
            answer = wire.answer(cell.method)
            assert answer is not None, f"hung up on {cell}"
            if answer.status != cell.status():
                wrong.append((cell, answer.status))
            assert not [name for name in answer.headers if name.startswith("access-control") or name == "set-cookie"]
            assert answer.status == 200 or cell.method == "HEAD" or answer.detail
    return wrong


@pytest.mark.parametrize("method", METHODS)
def test_every_cell_of_host_origin_site_method_and_key_is_as_written(api, service, method):
    secret = service.token()
    before = service.version()
    assert ask_all(api, secret, cells(HOSTS, ORIGINS, SITES, [method])) == []
    assert service.version() == before


def test_every_other_spelling_of_a_host_is_as_written_for_every_method_and_key(api, service):
    assert ask_all(api, service.token(), cells(MORE_HOSTS, {None: True}, {None: True}, METHODS, KEYS[::2])) == []


def test_every_other_spelling_of_an_origin_and_a_site_is_as_written_for_every_method(api, service):
    host = {"127.0.0.1:@": True}
    origins = cells(host, {**MORE_ORIGINS}, {None: True, "same-origin": True, "cross-site": False}, METHODS, KEYS[:1])
    sites = cells(host, {None: True, "null": False}, {**MORE_SITES}, METHODS, KEYS[:1])
    assert ask_all(api, service.token(), [*origins, *sites]) == []


@pytest.fixture(scope="module")
def wide(service: Service) -> Iterator[ApiServer]:
    """The same service on every address of this machine."""
    service.token()
    server = ApiServer(service, "0.0.0.0", 0)
    server.start()
    yield server
    server.stop()


def test_bound_wider_every_cell_is_as_written_too(wide, service):
    hosts = {"192.0.2.1:@": False, "192.0.2.1": False, "0.0.0.0:@": False, **HOSTS}
    origins = {None: True, "http://192.0.2.1:@": False}
    sites = {None: True, "cross-site": False}
    assert ask_all(wide, service.token(), cells(hosts, origins, sites, METHODS, KEYS[1:])) == []


def test_a_header_given_twice_passes_only_where_every_value_does(api, service):
    port, secret = int(api.url.rpartition(":")[2]), service.token()
    ours, key = f"127.0.0.1:{port}", ("X-API-Key", secret)
    twice = [
        ([("Host", ours), ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site"), key], 403),
        ([("Host", ours), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "none"), key], 403),
        ([("Host", ours), ("Origin", f"http://{ours}"), ("Origin", "http://evil.example"), key], 403),
        ([("Host", ours), ("Origin", "http://evil.example"), ("Origin", f"http://{ours}"), key], 403),
        ([("Host", ours), ("Host", "evil.example"), key], 400),
        ([("Host", ours), ("Host", ours), key], 400),
        ([key], 400),
    ]
    for headers, status in twice:
        with Wire(port) as wire:
            wire.send(head("POST", "/jobs", headers))
            answer = wire.answer()
            assert answer is not None
            assert answer.status == status, headers


@pytest.mark.parametrize("path", ["/health", "/api/health", "/openapi.json", "/docs"])
def test_the_open_paths_need_no_key_to_be_read_but_the_right_host_and_a_key_for_all_else(api, service, path):
    hosts = {host: HOSTS[host] for host in ("127.0.0.1:@", "evil.example:@")}
    for cell in cells(hosts, {None: True, "null": False}, {None: True}, METHODS, ["none"]):
        port = int(api.url.rpartition(":")[2])
        with Wire(port) as wire:
            wire.send(cell.request(port, service.token(), path))
            answer = wire.answer(cell.method)
        assert answer is not None
        if cell.host_may and cell.method in SAFE:
            assert answer.status in ((200,) if cell.method == "GET" else (200, 405)), cell
        else:
            assert answer.status == cell.status(), cell


def test_a_page_of_another_site_cannot_cancel_a_job_even_with_the_key(api, http, service, job_id):
    paths = {"POST": f"/jobs/{job_id}/cancel", "DELETE": f"/jobs/{job_id}"}
    for method, path in paths.items():
        refused = [
            cell
            for cell in cells(HOSTS, ORIGINS, SITES, [method])
            if not (cell.host_may and cell.origin_may and cell.site_may)
        ]
        assert ask_all(api, service.token(), refused, path) == []
    assert http.get(f"/jobs/{job_id}").json()["status"] == "queued"
    assert http.post(paths["POST"]).json()["status"] == "cancelled"


def test_the_limits_and_deadlines_are_the_designs():
    sizes = (guard.MAX_TARGET, guard.MAX_HEADER_BYTES, guard.MAX_HEADERS, guard.MAX_BODY, wire.MAX_CONNECTIONS)
    assert sizes == (8 * 1024, 16 * 1024, 64, 1024 * 1024, 64)
    assert (wire.HEADER_DEADLINE_S, guard.BODY_DEADLINE_S) == (5, 10)
