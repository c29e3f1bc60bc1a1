"""What a finished phase left is found by the next attempt, whole or not at all."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from engine.order import CHECKPOINTS
from engine.trainer.phases import FOLDER, Phase, Phases
from tests.crash import faults

FOUND = Phase({"places": [1, 2], "seconds": 2.5}, {"ids": torch.arange(6, dtype=torch.int32).view(2, 3)})


def roots(folder: Path, attempts: int) -> list[Path]:
    """Return the checkpoint folders of so many attempts, the newest first."""
    for number in range(1, attempts + 1):
        (folder / f"attempt-{number}").mkdir(exist_ok=True)
    return [folder / f"attempt-{number}" / CHECKPOINTS for number in range(attempts, 0, -1)]


def test_the_next_attempt_finds_what_a_phase_left_and_does_not_do_it_again(tmp_path: Path) -> None:
    Phases(roots(tmp_path, 1)).save("diagnose", FOUND)
    later = Phases(roots(tmp_path, 3))
    found = later.through("diagnose", lambda: pytest.fail("it was done"))
    assert (found.facts["places"], found.facts["seconds"]) == ([1, 2], 2.5)
    assert (later.skipped, later.seconds) == (True, 2.5)
    assert torch.equal(found.tensors["ids"], FOUND.tensors["ids"])
    assert later.load("grow") is None


@pytest.mark.parametrize("file", ["facts.json", "tensors.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_what_is_damaged_is_said_and_done_again(tmp_path: Path, file: str, harm: str) -> None:
    Phases(roots(tmp_path, 1)).save("diagnose", FOUND)
    path = tmp_path / "attempt-1" / FOLDER / "diagnose" / file
    data = path.read_bytes()
    path.unlink()
    if harm == "flip":
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    elif harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    said: list[str] = []
    again = Phase({"places": [3]})
    phases = Phases(roots(tmp_path, 2), said.append)
    assert phases.through("diagnose", lambda: again).facts["places"] == [3]
    assert not phases.skipped
    assert len(said) == 1
    assert "diagnose" in said[0]


@pytest.mark.parametrize("action", [faults.die, faults.die_within, faults.die_after])
def test_killed_at_any_call_a_phase_is_whole_or_not_there(tmp_path: Path, action: faults.Action) -> None:
    def save(folder: Path) -> None:
        folder.mkdir()
        Phases(roots(folder, 1)).save("grow", FOUND)

    with faults.at(0, faults.die) as count:
        save(tmp_path / "counted")
    assert count.calls > 5
    for number in range(1, count.calls + 1):
        folder = tmp_path / f"{number}"
        with faults.at(number, action):
            assert faults.forked(lambda folder=folder: save(folder)) == -signal.SIGKILL
        left = Phases(roots(folder, 2)).load("grow")
        assert left is None or left.facts == FOUND.facts
        Phases(roots(folder, 2)).save("grow", FOUND)
