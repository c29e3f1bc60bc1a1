"""A run that its user stops is told once, whatever the store says meanwhile: a second signal would cost the save."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import process
from engine.running import evidence
from engine.running.supervisor import Supervisor
from engine.service import Service
from store import StoreBusy, StoreError, attempts
from store.errors import StoreFull
from tests.conditions import eventually
from tests.crash import light


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    opened = light.open_service(tmp_path / "home", light.install(tmp_path / "bin", step_s=0.02))
    yield opened
    opened.close()


@pytest.mark.parametrize("error", [StoreBusy("busy"), StoreFull("full")], ids=["busy", "full"])
def test_a_stop_whose_note_cannot_be_written_is_signalled_once(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: StoreError
) -> None:
    sent: list[int] = []
    real = process.send

    def count(identity: process.Identity, number: int, **options: Any) -> bool:
        sent.append(number)
        return real(identity, number, **options)

    monkeypatch.setattr("engine.running.supervisor.process.send", count)
    job_id = light.submit(service, steps=100_000)
    supervisor = Supervisor(service)
    supervisor._keep_ballast()
    eventually(lambda: supervisor.tick() or service.job(job_id).step >= 5, what="some steps")
    # Stopped, so that it cannot end before the refusals are over.
    worker = evidence.worker(attempts.of_job(service.store.read(), job_id)[-1])
    assert worker
    assert real(worker, signal.SIGSTOP, group=True)
    service.cancel(job_id)

    def refuse(*arguments: Any, **columns: Any) -> int:
        if "stop_signalled_at" in columns:
            raise error
        return known(*arguments, **columns)

    known = attempts.update
    with monkeypatch.context() as patch:
        patch.setattr("store.attempts.update", refuse)
        for _ in range(3):
            with pytest.raises(type(error)):
                supervisor.tick()
    assert sent == [signal.SIGTERM]
    assert real(worker, signal.SIGCONT, group=True)
    eventually(lambda: supervisor.tick() or service.job(job_id).finished, what="the end")
    assert service.job(job_id).state == "cancelled"
    assert sent == [signal.SIGTERM]
    supervisor.close()


def test_a_round_that_fails_over_and_over_is_logged_once_and_skips_no_duty(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    light.submit(service)
    asked: list[int] = []

    def no_devices() -> list[Any]:
        asked.append(1)
        raise RuntimeError("The driver does not answer.")

    supervisor, stop = Supervisor(service, devices=no_devices), threading.Event()
    monkeypatch.setattr("engine.running.supervisor.RETRY_SECONDS", 0.01)
    kept: list[int] = []
    monkeypatch.setattr(supervisor, "_keep_ballast", lambda: kept.append(1))
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    eventually(lambda: len(asked) > 3, what="some rounds")
    stop.set()
    thread.join()
    assert len(kept) >= 3
    assert [record.getMessage() for record in caplog.records].count(
        "A round failed, the next one tries again: The driver does not answer."
    ) == 1
    supervisor.close()
