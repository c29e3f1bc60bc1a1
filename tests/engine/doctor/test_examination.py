"""The examination as a whole: it changes nothing, and no check that breaks ends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.doctor import examination, software
from engine.doctor.finding import Finding, Machine
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui.cli import doctor
from tests.engine.doctor.conftest import (
    contents,
    trouble,
    without_training,
)


def test_a_fresh_data_folder_is_well_and_is_left_as_it_is(machine: Machine) -> None:
    before = contents(machine.home.root)
    found = without_training(machine)
    # The catalogue's rows of this test have no files; no run waits for them.
    assert [finding for finding in found if finding.level != "ok" and finding.name != "catalogue"] == []
    assert {finding.name for finding in found} > {"store", "disk", "supervisor", "workers", "checkpoints", "leftovers"}
    assert contents(machine.home.root) == before


def test_a_data_folder_that_nobody_has_open_is_left_as_it_is(machine: Machine, service: Service) -> None:
    service.close()
    before = contents(machine.home.root)
    assert {finding.level for finding in without_training(machine) if finding.name == "store"} == {"ok"}
    assert contents(machine.home.root) == before


def test_no_data_folder_is_no_fault_and_none_is_made(machine: Machine, tmp_path: Path) -> None:
    machine.home = Home(tmp_path / "nowhere")
    assert {finding.level for finding in without_training(machine)} == {"ok"}
    assert not machine.home.root.exists()


def test_a_check_that_breaks_is_a_finding_and_the_next_ones_run(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Machine) -> Iterator[Finding]:
        yield Finding("first", "ok", "so far")
        raise ZeroDivisionError("by zero")

    def refused(_: Machine) -> Iterator[Finding]:
        raise PermissionError(13, "Permission denied", "/secret")
        yield

    monkeypatch.setattr(examination, "CHECKS", (("broken", broken), ("refused", refused), ("python", software.python)))
    found = list(examination.examine(machine))
    assert [finding.name for finding in found] == ["first", "broken", "refused", "python"]
    assert "by zero" in found[1].seen
    assert "/secret" in found[2].seen


def test_a_settings_file_with_an_unknown_key_is_told_and_the_rest_is_looked_at_with_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("prot = 7000\n")
    monkeypatch.setenv("FUSION_CONFIG", str(file))
    monkeypatch.delenv("FUSION_PORT", raising=False)
    made = doctor.machine()
    found = trouble(software.settings, made)
    assert (found.level, "Did you mean 'port'?" in found.seen) == ("error", True)
    assert made.settings.port == Settings().port


def test_every_check_has_a_name_of_its_own() -> None:
    names = [name for name, _ in examination.CHECKS]
    assert len(names) == len(set(names))
