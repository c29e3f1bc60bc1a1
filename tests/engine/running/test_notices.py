"""What its user is told of a run: by a real command and a real server, once, whoever is killed in between."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.running.notices import HELD_SECONDS, Notices
from engine.running.outlets import Command
from engine.running.supervisor import Supervisor
from engine.service import Service
from engine.settings import Settings
from store import happenings, jobs
from store.errors import StoreFull
from tests.conditions import eventually
from tests.crash import light
from tests.engine.running.hearing import Script, Server
from tests.supervised import Supervised


def notices(service: Service, *ways: Any, clock: Callable[[], float] | None = None, **settings: Any) -> Notices:
    """Return what a supervisor would have for notices, having had its first look."""
    options = {"ways": ways} if ways else {}
    clock = clock or (lambda: 1000.0)
    made = Notices(service.store, Settings(**settings), service.home.root, clock=clock, **options)
    made.look()
    return made


def happens(service: Service, job_id: str, kind: str, payload: dict[str, Any], *, ts: float = 1000.0) -> None:
    """Put something into a job's history."""
    with service.store.write() as db:
        jobs.add_event(db, job_id, kind, payload, now=ts)


def ends(service: Service, job_id: str, state: str, **columns: Any) -> None:
    """Walk a job to its end."""
    with service.store.write() as db:
        path = ["provisioning", "staging", "running", *(["uploading"] if state == "completed" else []), state]
        for number, to in enumerate(path):
            end = {"finished_at": 1600.0, **columns} if number == len(path) - 1 else {}
            detail = {"error": end["error"]} if end.get("error") else None
            assert jobs.transition(db, job_id, to, fence=0, now=1000.0, detail=detail, **end)


def kinds(service: Service, job_id: str, kind: str) -> list[dict[str, Any]]:
    """Return what the history says of a kind."""
    return [event.payload for event in service.events(job_id) if event.kind == kind]


def test_the_command_of_the_user_is_run_with_the_facts_of_the_run(quiet: Service, tmp_path: Path) -> None:
    script = Script(tmp_path)
    told = notices(quiet, notify_command=script.argv)
    job_id = light.submit(quiet)
    with quiet.store.write() as db:
        jobs.update(db, job_id, name="-rf $(touch x) {job_id}\n\x1b[31m")
    ends(quiet, job_id, "failed", error="The data has\nno rows.")
    told.look()
    ((arguments, facts),) = script.told()
    message = "failed: -rf $(touch x) {job_id}: The data has no rows."
    assert arguments == ["failed", f"about {job_id}", message]
    assert (
        facts.items()
        >= {
            "FUSION_EVENT": "failed",
            "FUSION_CAUSE": "failed",
            "FUSION_MESSAGE": message,
            "FUSION_JOB_ID": job_id,
            "FUSION_JOB_NAME": "-rf $(touch x) {job_id}",
            "FUSION_JOB_TYPE": "finetune",
            "FUSION_JOB_STATE": "failed",
            "FUSION_HOME": str(quiet.home.root),
        }.items()
    )
    (mark,) = kinds(quiet, job_id, "notice")
    assert (mark["event"], mark["by"]) == ("failed", "command")
    assert kinds(quiet, job_id, "notice_failed") == []


def test_a_webhook_gets_one_post_and_its_address_stands_nowhere(
    quiet: Service, serving: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = serving()
    with caplog.at_level(logging.DEBUG):
        told = notices(quiet, notify_webhook=server.url)
        job_id = light.submit(quiet)
        ends(quiet, job_id, "completed", started_at=1000.0, step=3)
        told.look()
        told.look()
    (body,) = server.got
    assert server.paths == ["/hook/a-secret"]
    assert body["text"] == f"finished: {quiet.job(job_id).name}, 3 steps, 10 min"
    assert (body["event"], body["cause"], body["at"]) == ("finished", "completed", "1970-01-01T00:16:40+00:00")
    assert (body["job"]["id"], body["job"]["state"], body["job"]["error"]) == (job_id, "completed", None)
    assert kinds(quiet, job_id, "notice")[0]["by"] == "webhook at 127.0.0.1"
    assert "secret" not in caplog.text
    assert "secret" not in repr(Settings(notify_webhook=server.url))


def test_a_command_may_be_named_by_its_place_in_the_users_home(
    quiet: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    told = notices(quiet, notify_command=(f"~/{script.path.name}", "{unknown}"))
    ends(quiet, light.submit(quiet), "completed")
    told.look()
    assert [arguments for arguments, _ in script.told()] == [["{unknown}"]]


def test_every_happening_that_wants_attention_is_told_and_the_rest_is_not(quiet: Service, tmp_path: Path) -> None:
    script = Script(tmp_path)
    told = notices(quiet, notify_command=script.argv)
    job_id = light.submit(quiet)
    happens(quiet, job_id, "stalled", {"why": "stalled: nothing heard for 5 min; last: training"})
    happens(quiet, job_id, "rollback", {"step": 40, "lr_scale": 0.5, "of": "ungrown"})
    happens(quiet, job_id, "rollback", {"step": 40, "lr_scale": 0.5})
    happens(quiet, job_id, "spike", {"step": 41})
    happens(quiet, job_id, "limit", {"limit": "max_hours", "why": "it has worked for 2 h, the max_hours"})
    happens(quiet, job_id, "hold", {"why": "memory: needs 5 GB"})
    happens(quiet, job_id, "hold", {"why": "disk_full: 1 MB free"})
    happens(quiet, job_id, "state", {"from": "running", "to": "preempted", "why": "lost"})
    ends(quiet, job_id, "cancelled")
    told.look()
    name = quiet.job(job_id).name
    assert script.causes() == ["stalled", "diverged", "limit", "disk_full"]
    assert [arguments[2] for arguments, _ in script.told()] == [
        f"attention: {name}: nothing heard for 5 min; last: training",
        f"attention: {name}: the loss was no number; back to step 40 with a lower learning rate",
        f"attention: {name}: it has worked for 2 h, the max_hours",
        f"attention: {name}: disk_full: 1 MB free",
    ]


def test_only_what_is_wanted_is_told_and_what_was_passed_over_stays_so(quiet: Service, tmp_path: Path) -> None:
    script = Script(tmp_path)
    told = notices(quiet, notify_command=script.argv, notify_on=("failed",))
    done = light.submit(quiet)
    ends(quiet, done, "completed")
    told.look()
    assert script.told() == []
    notices(quiet, notify_command=script.argv)  # the next supervisor, under other settings
    assert script.told() == []


def test_a_full_disk_that_holds_the_whole_queue_is_told_once_an_hour(quiet: Service, tmp_path: Path) -> None:
    script = Script(tmp_path)
    told = notices(quiet, notify_command=script.argv)
    ids = [light.submit(quiet) for _ in range(5)]
    for n, job_id in enumerate(ids):
        happens(quiet, job_id, "hold", {"why": "disk_full: 1 MB free"}, ts=1000.0 + n)
    happens(quiet, ids[0], "state", {"from": "running", "to": "preempted", "why": "disk_full"}, ts=3000.0)
    told.look()
    assert [facts["FUSION_JOB_ID"] for _, facts in script.told()] == [ids[0]]
    # A supervisor that comes later finds the same.
    told = notices(quiet, notify_command=script.argv, clock=lambda: 90_000.0)
    assert len(script.told()) == 1
    happens(quiet, ids[1], "state", {"from": "running", "to": "preempted", "why": "disk_full"}, ts=4700.0)
    told.look()
    assert [facts["FUSION_JOB_ID"] for _, facts in script.told()] == [ids[0], ids[1]]


def test_a_store_that_cannot_be_written_keeps_no_notice_back(
    quiet: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(tmp_path)
    told = notices(quiet, notify_command=script.argv)
    happens(quiet, light.submit(quiet), "hold", {"why": "disk_full: 0 B free"})

    def full() -> None:
        raise StoreFull("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(quiet.store, "write", full)
        with pytest.raises(StoreFull):
            told.look()
        told.look()
    told.look()
    assert script.causes() == ["disk_full"]


def test_a_hold_that_lasts_is_told_once_and_of_the_first_in_the_queue_alone(quiet: Service, tmp_path: Path) -> None:
    script, now = Script(tmp_path), [1000.0]
    ids = [light.submit(quiet) for _ in range(3)]
    for job_id in ids:
        with quiet.store.write() as db:
            jobs.set_hold(db, jobs.get(db, job_id), "memory: needs 5 GB")
            jobs.add_event(db, job_id, "hold", {"why": "memory: needs 5 GB"}, now=now[0])
    told = notices(quiet, notify_command=script.argv, clock=lambda: now[0])
    for passed in (HELD_SECONDS - 60, 120, 3600, 3600):
        now[0] += passed
        told.look()
    ((arguments, facts),) = script.told()
    assert facts["FUSION_JOB_ID"] == ids[0]
    assert arguments[2].endswith(": held for 31 min; memory: needs 5 GB")


def test_who_turns_notices_on_is_told_of_what_happens_from_then_on(quiet: Service, tmp_path: Path) -> None:
    script = Script(tmp_path)
    ends(quiet, light.submit(quiet), "completed")
    notices(quiet, notify_command=script.argv)
    assert script.told() == []
    # Without them for a while, and with them again.
    with Notices(quiet.store, Settings(), quiet.home.root).at_work():
        ends(quiet, light.submit(quiet), "completed")
    told = notices(quiet, notify_command=script.argv)
    assert script.told() == []
    ends(quiet, light.submit(quiet), "completed")
    told.look()
    assert script.causes() == ["completed"]


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("print('no route to the pager', file=sys.stderr); sys.exit(3)", "exit status 3: no route to the pager"),
        (None, "it could not be run: No such file or directory"),
    ],
)
def test_a_command_that_fails_is_told_in_the_history_and_the_run_is_what_it_was(
    quiet: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture, then: str | None, words: str
) -> None:
    argv = Script(tmp_path, then).argv if then else (str(tmp_path / "not-there"),)
    told = notices(quiet, Command(argv, quiet.home.root))
    job_id = light.submit(quiet)
    ends(quiet, job_id, "completed")
    told.look()
    (failed,) = kinds(quiet, job_id, "notice_failed")
    assert words in failed["why"]
    assert failed["by"] == "command"
    assert words in caplog.text
    assert quiet.job(job_id).state == "completed"


def test_a_command_that_hangs_keeps_no_run_waiting(quiet: Service, tmp_path: Path) -> None:
    script = Script(tmp_path, f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)")
    quiet.settings = Settings(trainer_python=quiet.settings.trainer_python, notify_command=script.argv)
    supervisor, stop = Supervisor(quiet), threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: happenings.place(quiet.store.read()), within=30, what="its first look")
        first, second = light.submit(quiet), light.submit(quiet)
        eventually(script.told, within=60, what="the notice")
        eventually(lambda: quiet.job(second).finished, within=60, what="the end of the second run")
        assert [facts["FUSION_JOB_ID"] for _, facts in script.told()] == [first]
        (tmp_path / "go").touch()
        eventually(lambda: len(script.told()) == 2, within=60, what="the second notice")
    finally:
        (tmp_path / "go").touch()
        stop.set()
        thread.join()
        supervisor.close()


def test_a_supervisor_that_is_killed_tells_nothing_twice_and_the_next_one_tells_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    script = Script(tmp_path, f"while not os.path.exists({str(go)!r}): time.sleep(0.01)")
    executable = light.install(tmp_path / "bin")
    config = tmp_path / "config.toml"
    config.write_text(f"trainer_python = {json.dumps(str(executable))}\nnotify_command = {json.dumps(script.argv)}\n")
    monkeypatch.setenv("FUSION_CONFIG", str(config))
    service = light.open_service(tmp_path / "home", executable)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    run = Supervised(service, port)
    try:
        run.start()
        eventually(lambda: happenings.place(service.store.read()), within=30, what="its first look")
        ids = [light.submit(service) for _ in range(2)]
        eventually(lambda: script.told() and all(service.job(one).finished for one in ids), within=60, what="the end")
        run.kill()  # the first notice is out, the second waits
        go.touch()
        run.start()
        eventually(lambda: len(script.told()) == 2, within=60, what="the second notice")
        assert [facts["FUSION_JOB_ID"] for _, facts in script.told()] == ids
        assert [len(kinds(service, one, "notice")) for one in ids] == [1, 1]
    finally:
        go.touch()
        run.clear_away()
        service.close()
