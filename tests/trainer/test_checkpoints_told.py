"""What is told of checkpoints is what lies on the disk: also of two copies of a step, of pins, and after a kill."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine import journal, pins
from engine.journal import JournalWriter
from engine.order import CHECKPOINTS, JOURNAL
from engine.trainer import checkpoint, loop
from engine.trainer.checkpoint import LoopState
from engine.trainer.guard import NO_NUMBERS_AT_MOST, Guard
from engine.trainer.ladder import Rung
from engine.trainer.reporter import Reporter
from engine.trainer.run import Run
from engine.trainer.step import Step
from tests import tiny
from tests.crash import faults
from tests.trainer.conftest import Bench, Killed

NAN = float("nan")


def kill(call: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Stand for a kill before the call: nothing of a resume catches it."""
    raise Killed


@dataclass
class Scene:
    """A job of two attempts, made anew for each try: the first saved steps 1, 2 and 3, the second 3 again.

    The second's copy is damaged; and the first was killed when it took the removal of step 1 back, which was pinned.
    """

    folder: Path
    run: Run

    def stage(self) -> None:
        """Put the two attempts back to where they ended."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.folder.with_name("template"), self.folder)

    def attempt(self, fence: int) -> Run:
        """Return the run of the next attempt."""
        attempts = [self.folder / f"attempt-{number}" for number in range(fence, 0, -1)]
        attempts[0].mkdir(exist_ok=True)
        roots = tuple(attempt / CHECKPOINTS for attempt in attempts)
        return replace(self.run, roots=roots, reporter=Reporter(JournalWriter(attempts[0] / JOURNAL, fence)))

    def path(self, fence: int, step: int) -> Path:
        return self.folder / f"attempt-{fence}" / CHECKPOINTS / f"step-{step:08d}"

    def shown(self) -> dict[int, tuple[str, str]]:
        """Return what a store that takes every line of every attempt shows of each step: its state and its path."""
        shown: dict[int, tuple[str, str]] = {}
        for attempt in sorted(self.folder.glob("attempt-*")):
            for record in journal.read(attempt / JOURNAL, 0).records:
                if record.kind == "checkpoint":
                    shown[record.data["step"]] = ("published", record.data["path"])
                elif record.kind == "checkpoint_gone":
                    shown[record.data["step"]] = (record.data["state"], shown[record.data["step"]][1])
        return shown

    def check(self) -> None:
        """Check that every step is shown where it lies, and that the pinned one kept its mark."""
        assert self.shown() == {step: ("published", str(self.path(1, step))) for step in (1, 2, 3)}
        assert all(self.path(1, step).is_dir() for step in (1, 2, 3))
        assert pins.is_pinned(self.path(1, 1))


def damage(directory: Path) -> None:
    file = directory / "optimizer.safetensors"
    os.truncate(file, file.stat().st_size - 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Scene:
    folder = tmp_path_factory.mktemp("told")
    bench = Bench(folder / "job", tiny_model, tiny.make_rows(folder / "sums.jsonl", 24))
    run = bench.make_run(bench.order(steps=3, save_steps=1))
    scene = Scene(bench.folder, run)
    first = replace(run, keep_checkpoints=3)
    loop.train(first, loop.resume(first))
    second = scene.attempt(2)
    state = loop.resume(second)
    again = checkpoint.save(second.roots[0], state, {"step": 3, "epoch": 1.0}, run.model, run.optimizer)
    loop.report(second, again)
    damage(again)
    one = scene.path(1, 1)
    pins.pin(one)
    second.reporter.checkpoint_gone(1, "removed")
    one.rename(one.with_name(".removed-step-00000001-0123abcd"))
    scene.folder.rename(scene.folder.with_name("template"))
    return scene


@pytest.fixture
def scene(made: Scene) -> Scene:
    made.stage()
    assert made.shown()[1][0] == "removed"
    assert made.shown()[3] == ("published", str(made.path(2, 3)))
    return made


def test_a_resume_tells_of_the_copy_that_it_uses_and_of_the_pinned_one_that_it_put_back(scene: Scene) -> None:
    assert loop.resume(scene.attempt(3)).step == 3
    scene.check()
    told = journal.read(scene.folder / "attempt-3" / JOURNAL, 0).records
    assert [r.data["state"] for r in told if r.kind == "checkpoint_gone"] == ["quarantined"]
    # The one in use comes last: what a job shows as its newest is what was told last.
    assert [r.data["step"] for r in told if r.kind == "checkpoint"] == [1, 3]
    # All is known now: who resumes from there adds nothing.
    assert loop.resume(scene.attempt(4)).step == 3
    kinds = {record.kind for record in journal.read(scene.folder / "attempt-4" / JOURNAL, 0).records}
    assert kinds == {"resume", "log"}


def test_killed_at_any_call_of_a_resume_the_next_one_puts_right_what_is_told(scene: Scene) -> None:
    third = scene.attempt(3)
    with faults.at(0, kill) as count:
        loop.resume(third)
    assert count.calls >= 8
    for number in range(1, count.calls + 1):
        scene.stage()
        third = scene.attempt(3)
        with faults.at(number, kill), pytest.raises(Killed):
            loop.resume(third)
        assert loop.resume(scene.attempt(4)).step == 3
        scene.check()


def test_the_best_whose_newer_copy_is_damaged_stands_when_its_older_one_is_taken(scene: Scene) -> None:
    run = scene.attempt(3)
    patient = run.settings.model_copy(update={"early_stopping_patience": 1})
    checkpoint.clear(run.roots)
    assert loop.take_best(replace(run, settings=patient), LoopState(step=6, best_step=3)).step == 3
    scene.check()


def test_going_back_to_a_step_whose_newer_copy_is_damaged_its_older_one_stands(scene: Scene) -> None:
    run = scene.attempt(3)
    checkpoint.clear(run.roots)
    hopeless = LoopState(step=5, rung=Rung(2, "none"), guard=Guard(no_numbers=NO_NUMBERS_AT_MOST))
    assert loop.skip(run, hopeless, 6, Step(NAN, NAN, 1, {}, "nan")).step == 3
    scene.check()


def test_a_pinned_checkpoint_whose_manifest_is_damaged_keeps_no_run_from_resuming(scene: Scene) -> None:
    doomed = scene.path(1, 1).with_name(".removed-step-00000001-0123abcd")
    (doomed / "manifest.json").write_text("{")
    assert loop.resume(scene.attempt(3)).step == 3
    assert scene.shown()[1][0] == "removed"
    assert scene.shown()[3] == ("published", str(scene.path(1, 3)))
    assert pins.is_pinned(scene.path(1, 1))
