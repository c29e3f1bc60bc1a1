"""The command `keys`: list, add, revoke."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui.cli import main
from fusion_tui.cli.serve import SCOPES
from store import keys

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("FUSION_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(main, ["keys", *arguments])


def test_the_scopes_to_choose_from_are_all_there_are():
    assert SCOPES == keys.SCOPES


def test_a_key_is_added_listed_and_revoked(run: Run, tmp_path: Path):
    made = json.loads(run("add", "nightly", "--scope", "read", "--scope", "train", "--json").stdout)
    service = Service(Home(tmp_path), config=Settings())
    known = service.authenticate(made["secret"])
    assert known is not None
    assert (known.name, known.scopes) == ("nightly", ("read", "train"))
    listed = run("--json").stdout
    assert made["secret"] not in listed
    assert [key["name"] for key in json.loads(listed)] == ["nightly", "first key"]
    assert run("revoke", made["id"]).exit_code == 0
    assert service.authenticate(made["secret"]) is None
    service.close()
    again = run("revoke", made["id"])
    assert again.exit_code == 1
    assert "fusion-tui keys" in again.stderr


def test_a_secret_alone_stands_on_stdout_and_a_wrong_scope_is_refused(run: Run):
    made = run("add", "one", "--scope", "read")
    assert made.stdout.startswith("fus_")
    assert len(made.stdout.split()) == 1
    assert run("add", "one", "--scope", "root").exit_code == 2
    assert run("add", "one").exit_code == 2
