"""The ways by which notices leave: none raises, none waits without end, none tells a webhook's address."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import process
from engine.running.outlets import Command, Notice, Webhook
from engine.service import Service
from tests.conditions import eventually
from tests.crash import light
from tests.engine.running.hearing import Script, Server


@pytest.mark.parametrize(
    ("answers", "tries", "words"),
    [
        ((503, 429, 204), 3, None),
        ((500,), 4, "it answered 500"),
        ((404, 200), 1, "it answered 404"),
        ((302, 200), 1, "it answered 302; redirects are not followed: name the address that it leads to"),
        ((307, 200), 1, "it answered 307; redirects are not followed: name the address that it leads to"),
    ],
)
def test_a_webhook_is_tried_again_where_that_may_help_and_led_nowhere_else(
    quiet: Service, serving: Callable[..., Server], answers: tuple[int, ...], tries: int, words: str | None
) -> None:
    server, waited = serving(*answers), []
    job = quiet.job(light.submit(quiet))
    way = Webhook(server.url, lambda seconds: waited.append(seconds) or False)
    assert way.send(Notice("1", "failed", "failed", "failed: x", 0.0, job)) == words
    assert set(server.paths) == {"/hook/a-secret"}
    assert len(server.got) == tries
    assert waited == [2.0, 10.0, 30.0][: tries - 1]


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(quiet: Service, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    start = f"open({str(note)!r}, 'w').write(str(os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '600'))); time.sleep(600)"
    job = quiet.job(light.submit(quiet))
    way = Command(Script(tmp_path, start).argv, quiet.home.root, seconds=1.0)
    assert way.send(Notice("1", "failed", "failed", "failed: x", 0.0, job)) == "it took longer than 1 s and was ended"
    eventually(lambda: process.identify(int(note.read_text())) is None, within=30, what="the end of what it started")


def test_a_server_that_is_not_there_or_says_nothing_is_given_up_without_telling_its_address(
    quiet: Service, serving: Callable[..., Server]
) -> None:
    job = quiet.job(light.submit(quiet))
    notice = Notice("1", "failed", "failed", "failed: x", 0.0, job)
    gone = Webhook("http://127.0.0.1:9/a-secret", lambda _: False).send(notice)
    assert gone == "Connection refused"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a-secret"
        assert Webhook(url, lambda _: True, seconds=0.1).send(notice) == (
            "no answer in 0.1 s; not tried again, for the supervisor left"
        )
    assert "secret" not in (Webhook("http://127.0.0.1:9/a secret", lambda _: False).send(notice) or "")
