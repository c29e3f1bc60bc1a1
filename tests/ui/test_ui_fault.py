"""The app when something below it fails: no supervisor, a dead worker, a locked, read-only or vanished store."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from engine import process
from engine.process import Identity
from engine.service import Service
from engine.settings import Settings
from fusion_tui import daemon
from fusion_tui.screens.new import NewScreen
from fusion_tui.screens.run import RunScreen
from fusion_tui.screens.runs import RunsScreen
from store import db, telemetry
from store.telemetry import Checkpoint
from tests.ui.driving import LARGE, SMALL, Runs, open_app, screen_text, sees, until

WORKER = "import time; time.sleep(600)"


@contextmanager
def process_of_its_own() -> Iterator[tuple[subprocess.Popen[bytes], Identity]]:
    """A process that stands for a worker."""
    child = subprocess.Popen([sys.executable, "-c", WORKER])
    try:
        identity = process.identify(child.pid)
        assert identity
        yield child, identity
    finally:
        child.kill()
        child.wait()


def unclaim(service: Service) -> None:
    """Take the open attempts away, for another to be made."""
    with service.store.write() as writer:
        writer.conn.execute("DELETE FROM attempts")


# Supervisor and worker -------------------------------------------------------------------------------------------


async def test_a_key_brings_up_a_real_supervisor_where_none_runs(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("FUSION_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("FUSION_CONFIG", str(service.home.root / "config.toml"))
    app = open_app(
        service,
        supervisor=lambda: daemon.running(service.home),
        start_supervisor=lambda: daemon.start_in_background(service.home, ["--api-optional"]),
    )
    try:
        async with app.run_test(notifications=True, size=SMALL) as pilot:
            await sees(pilot, "▲ no supervisor: press S to start")
            await pilot.press("S")
            await until(pilot, lambda: "· supervisor runs" in screen_text(app), within=60, what="the supervisor")
            assert daemon.running(service.home)
            daemon.stop_running(service.home)
            await sees(pilot, "▲ no supervisor")
    finally:
        assert daemon.stop_running(service.home)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_run_whose_worker_died_is_not_shown_as_running(
    service: Service, runs: Runs, size: tuple[int, int]
) -> None:
    job = runs.start("a-run")
    app = open_app(service)
    with process_of_its_own() as (worker, identity):
        unclaim(service)
        runs.claim(job, identity)
        async with app.run_test(notifications=True, size=size) as pilot:
            await sees(pilot, "● running", "1 running, 0 queued")
            version = service.version()
            worker.kill()
            worker.wait()
            # Nobody writes to the store: the app sees it by itself.
            await sees(pilot, "▲ lost?", "0 running, 0 queued · ▲ 1 lost?")
            assert "● running" not in screen_text(app)
            assert service.version() == version
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, RunScreen))
            await sees(
                pilot, "▲ lost?", "worker gone, no supervisor: S starts one; the run goes on from its checkpoint"
            )
            assert "running" not in screen_text(app)
            await pilot.press("q")
    assert app.return_value == "1 run waits for a supervisor; fusion-tui starts one"
    assert service.job(job.id).state == "running"  # the app looked, and changed nothing


async def test_a_dead_worker_that_a_supervisor_has_yet_to_find_is_told_apart(service: Service, runs: Runs) -> None:
    job = runs.start("a-run")
    unclaim(service)
    runs.claim(job, Identity(process.boot_id(), 2**22 + 1, 1))
    found = daemon.SupervisorInfo(Identity("boot", 1, 1), "http://127.0.0.1:7878")
    app = open_app(service, supervisor=lambda: found)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "▲ worker gone")


async def test_a_worker_that_stands_still_is_told_in_the_supervisors_words(service: Service, runs: Runs) -> None:
    job = runs.start("a-run")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "● running")
        runs.move(job, hold="stalled: nothing heard for 6 min; last: training")
        await pilot.press("enter")
        await sees(pilot, "stalled: nothing heard for 6 min; last: training")
        assert "waits:" not in screen_text(app)
        runs.move(job, hold=None)
        await until(pilot, lambda: "stalled" not in screen_text(app))


# The store -------------------------------------------------------------------------------------------------------


async def test_a_store_that_stays_locked_leaves_the_app_alive_and_it_recovers_by_itself(
    service: Service, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "BUSY_TIMEOUT_S", 1.5)
    job = runs.start("a-run")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "a-run", "running")
        holder = sqlite3.connect(service.home.store, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        await sees(pilot, "✗ The job store", "is busy", "a-run")
        # No key waits: the thread that draws asks the store nothing.
        here: list[str] = []

        def watched(call: Callable[..., Any], sql: str, parameters: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                here.append(sql)
            return call(sql, parameters)

        with mock.patch("store.db.step", watched):
            for key in ("question_mark", "escape", "n", "escape", "2", "escape", "enter", "escape"):
                await pilot.press(key)
        assert here == []
        await pilot.press("s", "y")
        said = app._notifications
        await until(pilot, lambda: any("is busy. Try again" in one.message for one in said), what="why it does nothing")
        assert isinstance(app.screen, RunsScreen)
        holder.close()
        runs.move(job, "uploading")
        await sees(pilot, "▲ uploading")
        assert "as it was read last" not in screen_text(app)


async def test_a_store_that_was_never_read_is_told_and_nothing_is_said_of_runs(service: Service, runs: Runs) -> None:
    runs.start("a-run")
    away = service.home.store.rename(service.home.root / "away")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "✗ The data folder", "is gone", "▲ no supervisor")
        assert "0 running" not in screen_text(app)
        assert "as it was read last" not in screen_text(app)
        await pilot.press("q")
    assert app.return_value == "The job store could not be read; fusion-tui doctor tells more."
    away.rename(service.home.store)


async def test_a_read_only_store_is_shown_and_each_acting_key_says_why_it_does_nothing(
    service: Service, runs: Runs
) -> None:
    runs.start("works")
    runs.move(runs.queue("ended"), "cancelled")
    looking = Service(service.home, config=Settings(), read_only=True)
    started: list[object] = []
    app = open_app(looking, start_supervisor=lambda: started.append(1))
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, "works", "ended", "▲ read-only: nothing can be changed here")
        for key in ("s", "r", "D", "S"):
            app.clear_notifications()
            await until(pilot, lambda: "opened read-only" not in screen_text(app))
            await pilot.press(key)
            await sees(pilot, "is opened read-only")
            assert isinstance(app.screen, RunsScreen)
        app.clear_notifications()
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, NewScreen))
        await sees(pilot, "can be queued")
        await pilot.press("f2")
        await sees(pilot, "is opened read-only")
    looking.close()
    assert not started
    assert {job.name: job.state for job in service.jobs()} == {"works": "running", "ended": "cancelled"}


async def test_a_data_folder_that_is_taken_away_is_told_and_its_coming_back_too(
    service: Service, runs: Runs, tmp_path: Path
) -> None:
    runs.start("a-run")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "a-run")
        away = tmp_path / "away"
        service.home.root.rename(away)
        await sees(pilot, "✗ The data folder", "is gone")
        await pilot.press("s", "y")
        await until(pilot, lambda: app._notifications, what="words about the key")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, NewScreen))
        await pilot.press("escape")
        away.rename(service.home.root)
        await until(pilot, lambda: "is gone" not in screen_text(app))
        await sees(pilot, "1 running, 0 queued")


async def test_another_store_in_the_place_of_the_opened_one_is_told(service: Service, runs: Runs) -> None:
    runs.start("a-run")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, "a-run")
        copy = service.home.root / "copy.db"
        shutil.copyfile(service.home.store, copy)
        copy.rename(service.home.store)
        await sees(pilot, "is another file than before")


async def test_a_lock_that_cannot_be_taken_does_not_keep_the_app_from_opening(service: Service, runs: Runs) -> None:
    runs.start("a-run")
    service.home.app_lock.mkdir()
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "a-run", "doctor tells more")
        assert any("app.lock cannot be opened" in notification.message for notification in app._notifications)


# What is removed --------------------------------------------------------------------------------------------------


async def test_a_removed_dataset_is_named_so_while_the_app_is_open_and_a_retry_says_what_to_do(
    service: Service, runs: Runs
) -> None:
    runs.move(runs.queue("a-run"), "cancelled")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, "a-run")
        await pilot.press("enter")
        await sees(pilot, "finetune of starter on starter")
        service.remove_dataset("data-1")
        await sees(pilot, "on data-1 (removed)")
        await pilot.press("r")
        await sees(pilot, "The dataset of the job a-run was removed", "fusion-tui datasets add")
    assert service.jobs()[0].state == "cancelled"


async def test_a_run_that_is_deleted_elsewhere_while_a_question_about_it_stands_is_left(
    service: Service, runs: Runs
) -> None:
    job = runs.move(runs.queue("a-run"), "cancelled")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, "a-run")
        await pilot.press("enter")
        await sees(pilot, "finetune of starter")
        await pilot.press("D")
        await sees(pilot, "Delete a-run?")
        service.delete(job.id)
        await until(pilot, lambda: app.gone == job.id)
        await pilot.press("y")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))
        await sees(pilot, "No runs yet")


async def test_a_run_that_is_deleted_elsewhere_is_left_with_a_word(service: Service, runs: Runs) -> None:
    job = runs.move(runs.queue("a-run"), "cancelled")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, "a-run")
        await pilot.press("enter")
        await sees(pilot, "finetune of starter")
        service.delete(job.id)
        await sees(pilot, "a-run was deleted elsewhere", "No runs yet")


async def test_a_pinned_checkpoint_says_so(service: Service, runs: Runs) -> None:
    job = runs.start("a-run")
    row = Checkpoint("c-1", job.id, 40, 1.0, 2.0, None, 1e-3, "/nowhere", 9, "published", 1.0, pinned=True)
    with service.store.write() as writer:
        telemetry.add_checkpoint(writer, row)
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await sees(pilot, "a-run")
        await pilot.press("enter", *["right"] * 5)
        await sees(pilot, "published, pinned")
