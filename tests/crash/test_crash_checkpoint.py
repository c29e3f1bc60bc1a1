"""A save, or the publication of a model, that is killed or refused at any of its calls: the old, or the new, whole."""

from __future__ import annotations

import copy
import errno
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from engine import atomic, journal, manifest, pins
from engine.errors import DiskFailed, NoSpace
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.journal import JournalWriter
from engine.order import CHECKPOINTS, JOURNAL, Order
from engine.trainer import checkpoint, finetune, loop, publish
from engine.trainer import models as trainer_models
from engine.trainer.checkpoint import LoopState
from engine.trainer.optimizer import trained_parameters
from engine.trainer.reporter import Reporter
from engine.trainer.run import Run
from tests import tiny
from tests.conditions import eventually
from tests.crash import faults
from tests.trainer.conftest import Bench

REFUSALS = [errno.ENOSPC, errno.EIO]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """A fork has one thread, and must not wait for others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trained_parameters(run.model).items()}


@dataclass
class Scene:
    """A real run at step 4 with checkpoints 1, 2 and 3, whose next save publishes 4 and removes 2; 1 is pinned."""

    folder: Path
    saving: Run
    resuming: Run
    state: LoopState
    weights: dict[int, dict[str, torch.Tensor]]

    def stage(self, name: str) -> Path:
        """Return a fresh copy of the attempt's folder."""
        return Path(shutil.copytree(self.folder / "attempt-1", self.folder / name / "attempt-1"))

    def save(self, attempt: Path) -> None:
        """Save as the loop does: journal, checkpoint, journal, removal of older ones, journal."""
        journal_writer = JournalWriter(attempt / JOURNAL, 1)
        run = replace(self.saving, roots=(attempt / CHECKPOINTS,), reporter=Reporter(journal_writer))
        try:
            loop.save(run, copy.deepcopy(self.state), 1e-3)
        finally:
            journal_writer.close()

    def resume(self, attempt: Path) -> tuple[LoopState, dict[str, torch.Tensor]]:
        """Resume in a second attempt; return the state and the weights."""
        own = attempt.with_name("attempt-2")
        own.mkdir(exist_ok=True)
        roots = (own / CHECKPOINTS, attempt / CHECKPOINTS)
        journal_writer = JournalWriter(own / JOURNAL, 2)
        run = replace(self.resuming, roots=roots, reporter=Reporter(journal_writer))
        state = loop.resume(run)
        journal_writer.close()
        return state, weights_of(run)

    def check(self, attempt: Path) -> int:
        """Check that nothing that was published is unusable, lost or unknown; return the step resumed from."""
        state, weights = self.resume(attempt)
        assert all(torch.equal(weights[name], value) for name, value in self.weights[state.step].items())
        root = attempt / CHECKPOINTS
        found = {path.name for path in root.iterdir()}
        assert found <= {f"step-{step:08d}" for step in (1, 2, 3, 4)}
        assert {"step-00000001", "step-00000003"} <= found
        for name in found:
            manifest.verify(root / name)
        told = [record for folder in (attempt, attempt.with_name("attempt-2")) for record in records(folder)]
        assert "quarantined" not in {record.data.get("state") for record in told}
        stands = {record.data["step"] for record in told if record.kind == "checkpoint"}
        stands -= {record.data["step"] for record in told if record.kind == "checkpoint_gone"}
        assert stands <= {int(name[5:]) for name in found}
        assert state.step == max(stands)
        return state.step


def records(attempt: Path) -> list[journal.Record]:
    batch = journal.read(attempt / JOURNAL, 0)
    assert batch.damaged == 0
    return batch.records


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    bench = Bench(folder / "job", tiny_model, tiny.make_rows(folder / "sums.jsonl", 24))
    run = bench.make_run(bench.order(steps=3, save_steps=1))
    state = loop.train(run, loop.resume(run))
    # The loop keeps two; the first is made again, and pinned.
    weights = {3: weights_of(run)}
    root = bench.folder / "attempt-1" / CHECKPOINTS
    first = checkpoint.save(root, LoopState(step=1), {"step": 1}, run.model, run.optimizer)
    pins.pin(first)
    with torch.no_grad():
        for parameter in trained_parameters(run.model).values():
            parameter.add_(0.01)
    state.step = 4
    weights[4] = weights_of(run)
    resuming = bench.make_run(bench.order(steps=3, save_steps=1))
    return Scene(bench.folder, run, resuming, state, weights)


def calls_of_a_save(scene: Scene, name: str) -> faults.Count:
    attempt = scene.stage(name)
    with faults.at(0, faults.die) as count:
        scene.save(attempt)
    assert scene.check(attempt) == 4
    assert sorted(path.name for path in (attempt / CHECKPOINTS).iterdir())[1] == "step-00000003"
    return count


def told_by(work: Callable[[], object], number: int) -> str | None:
    """Return the words in which `work` tells that the disk refused it for this reason, None where it does not fail."""
    try:
        work()
    except Exception as error:  # noqa: BLE001  (the kinds are what is asked)
        kinds = (NoSpace if number == errno.ENOSPC else DiskFailed, OSError)
        return str(error) if isinstance(error, kinds) else f"{error!r} is of the wrong kind"
    return None


@pytest.mark.parametrize("action", [faults.die, faults.die_within])
def test_killed_at_any_call_of_a_save_the_newest_checkpoint_is_whole(scene: Scene, action: faults.Action) -> None:
    seen = calls_of_a_save(scene, f"all-{action.__name__}").seen
    assert len(seen) >= 30
    steps = []
    for number, call in enumerate(seen, start=1):
        if action is faults.die_within and not faults.has_a_middle(call):
            continue
        attempt = scene.stage(f"{action.__name__}-{number}")

        def killed(attempt: Path = attempt, number: int = number) -> None:
            with faults.at(number, action):
                scene.save(attempt)

        assert faults.forked(killed) == -9
        steps.append(scene.check(attempt))
    # The old one up to the rename, the new one from there on.
    assert steps == sorted(steps)
    assert set(steps) == {3, 4}


@pytest.mark.parametrize("onward", [False, True], ids=["once", "onward"])
@pytest.mark.parametrize("number", REFUSALS)
def test_refused_at_any_call_of_a_save_the_reason_is_told_and_the_next_save_succeeds(
    scene: Scene, number: int, onward: bool
) -> None:
    seen = calls_of_a_save(scene, f"all-{number}-{onward}").seen
    for at, call in enumerate(seen, start=1):
        attempt = scene.stage(f"{number}-{onward}-{at}")
        with faults.at(at, faults.fail(number), onward=onward):
            told = told_by(lambda attempt=attempt: scene.save(attempt), number)
        if told is None:
            # What is left to be removed is removed another time.
            assert getattr(call, "__name__", "") == "rmtree"
        else:
            assert "checkpoint" in told or str(attempt / JOURNAL) in told
        root = attempt / CHECKPOINTS
        assert onward or not list(root.glob(".stage-*"))
        manifest.verify(root / "step-00000003")
        scene.save(attempt)
        assert scene.check(attempt) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["write", "fsync", "rename", "mkdir", "openat", "unlinkat", "rmdir"])
def test_killed_at_any_system_call_of_a_save_the_newest_checkpoint_is_whole(scene: Scene, name: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    steps = []
    for number in itertools.count(1):
        attempt = scene.stage(f"strace-{name}-{number}")
        waiting, go = os.pipe()

        def traced(attempt: Path = attempt, waiting: int = waiting) -> None:
            os.read(waiting, 1)
            scene.save(attempt)

        pid = faults.fork(traced)
        inject = f"inject={name}:signal=KILL:when={number}"
        with subprocess.Popen(["strace", "-f", "-q", "-o", "/dev/null", "-e", inject, "-p", str(pid)]) as tracer:
            status = Path(f"/proc/{pid}/status")
            eventually(lambda status=status: "TracerPid:\t0" not in status.read_text() or tracer.poll() is not None)
            os.write(go, b"1")
            code = faults.ended(pid)
        os.close(waiting)
        os.close(go)
        if tracer.returncode == 1:
            pytest.skip("this machine lets nobody trace a process")
        steps.append(scene.check(attempt))
        if code == 0:
            break
        assert code == -9
    assert steps == sorted(steps)
    assert steps[-1] == 4
    assert len(steps) > 1


RESULT = {
    "rows_held_out": 1,
    "rows_trained": 23,
    "truncated_rows": 0,
    "ppl_baseline": 2.0,
    "ppl_final": 1.0,
    "ppl_delta_pct": -50.0,
    "tokens_processed": 10,
    "gpu_seconds": 1.0,
    "params_after": 27_712,
    "params_delta": 0,
}


@dataclass
class Press:
    """A trained run whose model can be published over and over, each time in a fork that gives its weights up."""

    folder: Path
    order: Order
    run: Run
    tokenizer: object

    def models(self, name: str, *, again: bool) -> Path:
        """Return a fresh folder for models; with `again` an earlier attempt published, and died before it said so."""
        made = self.folder / name
        if again:
            shutil.copytree(self.folder / "first", made)
        else:
            made.mkdir()
        return made

    def publish(self, models: Path, *, fence: int = 2) -> None:
        """Publish the model and tell of it."""
        order = replace(self.order, fence=fence, output_path=str(models / "out"))
        writer = JournalWriter(models / f"journal-{fence}", fence)
        run = replace(self.run, reporter=Reporter(writer))
        settings = FinetuneHyperparams.model_validate(order.hyperparams)
        finish = partial(finetune.finished, order, run, settings)
        publish.publish(order, run.reporter, self.tokenizer, finish, result=RESULT, curve=[(0, 1.0)])

    def check(self, models: Path) -> bool:
        """Check that the model is whole or not there; say whether it is."""
        told = "model" in [record.kind for record in journal.read(models / "journal-2", 0).records]
        if not (models / "out").exists():
            assert not told
            return False
        manifest.verify(models / "out")
        return True

    def finish(self, models: Path) -> None:
        """Check that the next attempt publishes, and leaves nothing beside the model."""
        assert faults.forked(lambda: self.publish(models, fence=3)) == 0
        assert self.check(models)
        atomic.sweep(models)
        assert {path.name for path in models.iterdir()} <= {"out", "journal-1", "journal-2", "journal-3"}


@pytest.fixture(scope="module", params=["full", pytest.param("lora", marks=pytest.mark.slow)])
def press(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Press:
    """A run that trained every weight; among the slow ones also one whose adapter is merged, which takes longer."""
    folder = tmp_path_factory.mktemp("press")
    bench = Bench(folder / "job", tiny_model, tiny.make_rows(folder / "sums.jsonl", 24))
    order = bench.order(steps=1, training_type=request.param)
    run = bench.make_run(order)
    loop.train(run, loop.resume(run))
    made = Press(folder, order, run, trainer_models.load_tokenizer(tiny_model))
    first = made.models("first", again=False)
    assert faults.forked(lambda: made.publish(first, fence=1)) == 0
    return made


def calls_of_a_publication(press: Press, name: str, *, again: bool) -> list[str]:
    """Return the names of the calls of an undisturbed publication."""
    models = press.models(name, again=again)

    def counted() -> None:
        with faults.at(0, faults.die) as count:
            press.publish(models)
        names = ["*" * faults.has_a_middle(call) + getattr(call, "__name__", "?") for call in count.seen]
        (models.with_suffix(".calls")).write_text("\n".join(names))

    assert faults.forked(counted) == 0
    assert press.check(models)
    return models.with_suffix(".calls").read_text().split("\n")


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["first", "again"])
def test_killed_at_any_call_of_a_publication_the_model_is_whole_or_not_there(press: Press, again: bool) -> None:
    seen = calls_of_a_publication(press, f"counted-{again}", again=again)
    assert {"*save_pretrained", "mkdir", "rename", "fsync", "*write"} <= set(seen)
    there = []
    for number, name in enumerate(seen, start=1):
        for action in (faults.die, faults.die_within) if name.startswith("*") else (faults.die,):
            models = press.models(f"{action.__name__}-{again}-{number}", again=again)

            def killed(models: Path = models, number: int = number, action: faults.Action = action) -> None:
                with faults.at(number, action):
                    press.publish(models)

            assert faults.forked(killed) == -9
            there.append(press.check(models))
            if number % 8 == 0:
                press.finish(models)
    assert there[-1]
    # With an earlier one in its place the model is away for one call, between two renames.
    assert there.count(False) == 1 if again else there == sorted(there)


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("number", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)])
def test_refused_at_any_call_of_a_publication_the_reason_is_told_and_nothing_half_is_left(
    press: Press, number: int, again: bool
) -> None:
    seen = calls_of_a_publication(press, f"counted-{number}-{again}", again=again)
    for at, name in enumerate(seen, start=1):
        models = press.models(f"{number}-{again}-{at}", again=again)

        def refused(models: Path = models, at: int = at, name: str = name) -> None:
            with faults.at(at, faults.fail(number)):
                told = told_by(lambda: press.publish(models), number)
            # What is left of an earlier one is removed another time.
            assert told or (again and name == "*rmtree"), (at, name)
            assert not told or "ublishing the model out failed" in told or "journal-2" in told

        assert faults.forked(refused) == 0
        there = press.check(models)
        assert there or not again
        left = {path.name for path in models.iterdir() if not (again and path.name.startswith(".removed-out-"))}
        assert left <= {"out", "journal-1", "journal-2"}
        if at % 8 == 0:
            press.finish(models)
