"""Asking a run for a checkpoint and changing what it is called, from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.service import Service
from fusion_tui.cli import main
from tests.crash import light
from tests.engine.conftest import start


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("FUSION_HOME", str(tmp_path / "home"))
    opened = light.open_service(tmp_path / "home", tmp_path / "none")
    yield opened
    opened.close()


def command(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_edit_changes_what_is_given_and_nothing_else(service: Service) -> None:
    job_id = light.submit(service)
    done = command("edit", job_id[:8], "--name", "sums", "--tag", "a", "--tag", "b", "--json")
    assert json.loads(done.stdout)["tags"] == ["a", "b"]
    assert command("edit", "sums", "--notes", "twice", "--no-tags").exit_code == 0
    job = service.job(job_id)
    assert (job.name, job.tags, job.notes) == ("sums", [], "twice")
    wrong = command("edit", "sums", "--name", "x" * 101)
    assert wrong.exit_code == 2
    assert "name: string should have at most 100 characters" in wrong.stderr


def test_checkpoint_asks_a_running_run_and_tells_of_any_other(service: Service) -> None:
    job_id = light.submit(service)
    assert "is queued; only one that is running" in command("checkpoint", job_id).stderr
    start(service, job_id)
    done = command("checkpoint", job_id[:8])
    assert (done.exit_code, service.job(job_id).save_requested) == (0, True)
    assert "saves at the end of its step" in done.stderr
    assert json.loads(command("checkpoint", job_id, "--json").stdout)["save_requested"] is True
