"""What takes long keeps to threads of its own: the rest of the API answers as if it were not there."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from engine.errors import InvalidData
from engine.service import Service
from fusion_tui.api import threads
from fusion_tui.api.server import ApiServer
from tests.api.conftest import DATA
from tests.conditions import eventually

MANY = 45  # more than the threads that all requests share


def held_up(monkeypatch: pytest.MonkeyPatch, service: Service, method: str) -> threading.Event:
    """Let a method of the service take until the event is set, and then refuse."""
    gate = threading.Event()

    def wait(*args: Any, **kwargs: Any) -> Any:
        assert gate.wait(30)
        raise InvalidData("It took too long.")

    monkeypatch.setattr(service, method, wait)
    return gate


def in_room(api: ApiServer, room: threads.Room) -> int:
    """Return how many requests are in a room or wait for it."""
    app: Any = api._server.config.app  # type: ignore[union-attr]
    rooms = getattr(app.state, "rooms", {})
    return int(rooms[room].inside) if room in rooms else 0


@pytest.mark.parametrize(
    ("room", "held", "method", "path", "body"),
    [
        (threads.IMPORTS, "add_dataset", "POST", "/datasets", {"name": "x", "path": "/nowhere/rows"}),
        (threads.WHOLE_CURVES, "points", "GET", "/jobs/{job_id}/metrics", None),
        (threads.INSPECTIONS, "inspect_dataset", "GET", f"/datasets/{DATA.id}/inspect?model=tiny", None),
    ],
    ids=["imports", "curves", "inspections"],
)
def test_what_takes_long_keeps_nobody_else_waiting(
    api: ApiServer,
    http: httpx.Client,
    service: Service,
    job_id: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    room: threads.Room,
    held: str,
    method: str,
    path: str,
    body: Any,
) -> None:
    let_in = MANY if room.waiting is None else room.threads + room.waiting
    gate = held_up(monkeypatch, service, held)
    with ThreadPoolExecutor(MANY) as pool:
        asked = [pool.submit(http.request, method, path.format(job_id=job_id), json=body) for _ in range(MANY)]
        try:
            eventually(lambda: in_room(api, room) + sum(one.done() for one in asked) == MANY)
            assert http.get(f"/jobs/{job_id}/logs", timeout=30).status_code == 200
            assert in_room(api, room) == let_in
        finally:
            gate.set()
        answers = [one.result() for one in asked]
    assert Counter(one.status_code for one in answers) == Counter({400: let_in, 503: MANY - let_in})
    for refused in (one for one in answers if one.status_code == 503):
        assert refused.headers["retry-after"] == "5"
        assert "8 inspections of a dataset wait already" in refused.json()["detail"]
