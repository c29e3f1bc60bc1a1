"""What doctor finds of devices and of the training interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.doctor import software
from engine.doctor.finding import Machine
from engine.errors import EngineError
from engine.resources import Device
from engine.settings import Settings
from tests.engine.doctor.conftest import (
    CARD,
    trouble,
)


def test_a_driver_that_does_not_answer_is_told(machine: Machine) -> None:
    def lost() -> list[Device]:
        raise EngineError("The NVIDIA driver does not answer (GPU is lost).")

    machine.devices = lost
    assert trouble(software.device, machine).level == "error"


def test_a_driver_that_is_loaded_without_a_card_to_be_had_is_told(machine: Machine) -> None:
    note = machine.root / "proc/driver/nvidia/version"
    note.parent.mkdir(parents=True)
    note.write_text("NVRM version")
    assert "driver is loaded" in trouble(software.device, machine).seen


def interpreter(tmp_path: Path, script: str) -> str:
    """Return a program that stands for a training interpreter."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


WELL = (
    '{"python": "3.12.1", "package": "0.1.0", "torch": {"version": "2.12", "cuda": "13.0", "device": "%s", '
    '"bf16": true, "unfit": "%s"}, "bitsandbytes": {%s}}'
)
FOUND_BNB = '"version": "0.50", "device": "cpu"'


@pytest.mark.parametrize(
    ("script", "name", "words"),
    [
        ("sleep 60", "trainer", "did not answer within"),
        ("echo 'No module named engine' >&2; exit 1", "trainer", "No module named engine"),
        ("echo no json", "trainer", "fails"),
        (f"echo '{WELL % ('cpu', '', FOUND_BNB)}'", "torch", "out of its reach"),
        (f"echo '{WELL % ('cuda', 'no kernel image', FOUND_BNB)}'", "torch", "no kernel image"),
        (f"echo '{WELL % ('cuda', '', chr(34) + 'error' + chr(34) + ': ' + chr(34) + 'is broken' + chr(34))}'",
         "bitsandbytes", "is broken"),
    ],
    ids=["silent", "without us", "talks nonsense", "cannot reach the card", "lacks kernels", "bitsandbytes"],
)  # fmt: skip
def test_what_is_wrong_with_the_training_interpreter_is_told(
    machine: Machine, tmp_path: Path, script: str, name: str, words: str
) -> None:
    machine.settings = Settings(trainer_python=interpreter(tmp_path, script))
    machine.training_seconds = 0.5 if script.startswith("sleep") else 20.0
    machine.devices = lambda: [CARD]
    found = trouble(software.training, machine)
    assert (found.name, words in found.seen) == (name, True), found


def test_a_training_interpreter_that_is_not_there_is_told(machine: Machine) -> None:
    machine.settings = Settings(trainer_python="/nowhere/python")
    assert "/nowhere/python" in trouble(software.training, machine).seen
