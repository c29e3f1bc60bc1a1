"""A worker whose disk is full, fails, or is taken away: it says so where it can, and it ends."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine import journal, manifest
from engine.order import CHECKPOINTS, GATE, JOURNAL, Order
from engine.trainer import __main__ as worker
from tests import tiny
from tests.conditions import eventually
from tests.crash import disks, faults
from tests.trainer.conftest import Bench
from tests.worker import begin

LONG = {"steps": 100_000, "save_steps": 3}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.make_rows(tmp_path / "sums.jsonl", 24)


def start(directory: Path, order: Order, *, fault: tuple[int, faults.Action] | None = None) -> int:
    """Start the worker of an attempt in a fork; from call N on, every change of a file may be refused.

    Not from pytest's own process: the tokenizer's threads, once used there, are missing in a fork.
    """
    order.write(directory)
    (directory / GATE).touch()

    def work() -> None:
        torch.set_num_threads(1)
        sys.stdout = (directory / "stdout.log").open("a", buffering=1)
        sys.stderr = (directory / "stderr.log").open("a", buffering=1)
        at, action = fault or (0, faults.die)
        with faults.at(at, action, onward=True):
            os._exit(worker.main(directory))

    return faults.fork(work)


def clean(work: Callable[..., None], *arguments: object) -> None:
    """Do a function of this module in a process of its own, and have it succeed."""
    process = begin(work, *arguments)
    process.join(120)
    assert process.exitcode == 0, "see the output above"


def records(directory: Path) -> list[journal.Record]:
    batch = journal.read(directory / JOURNAL, 0)
    assert batch.damaged == 0
    return batch.records


def checkpoints(directory: Path) -> list[int]:
    """Return the steps that the journal says are saved and not removed."""
    told = records(directory)
    gone = {record.data["step"] for record in told if record.kind == "checkpoint_gone"}
    return [r.data["step"] for r in told if r.kind == "checkpoint" and r.data["step"] not in gone]


def is_disk_full(directory: Path) -> bool:
    """Say whether the journal's last line is that the disk was full."""
    told = records(directory)
    if not told:
        return False
    last = told[-1]
    return last.kind == "end" and (last.data["outcome"], last.data["cause"]) == ("preempted", "disk_full")


def test_where_there_are_no_namespaces_nobody_mounts_a_small_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())  # macOS: a libc without `unshare`
    assert not disks.mount(tmp_path, "1m")


def fill_while_training(disk: Path, tiny_model: Path, rows: Path) -> None:
    bench = Bench(disk / "job", tiny_model, rows)
    order = bench.order(**LONG)
    directory = bench.folder / "attempt-1"
    pid = start(directory, order)
    eventually(lambda: checkpoints(directory), what="a checkpoint")
    filler = disks.fill(disk)
    assert faults.ended(pid) == 0
    assert is_disk_full(directory)
    assert filler.stat().st_size > 0
    root = directory / CHECKPOINTS
    saved = checkpoints(directory)
    assert saved
    assert [manifest.verify(root / f"step-{step:08d}").facts["step"] for step in saved] == saved
    assert {path.name for path in root.iterdir()} == {f"step-{step:08d}" for step in saved}


def test_a_disk_that_fills_while_training_is_the_last_word_and_the_checkpoints_stand(
    tmp_path: Path, tiny_model: Path, rows: Path
) -> None:
    disk = tmp_path / "disk"
    disks.on_a_small_disk(disk, "1500k", fill_while_training, disk, tiny_model, rows)


def begin_without_room(disk: Path, tiny_model: Path, rows: Path, left: int, code: int) -> None:
    bench = Bench(disk / "job", tiny_model, rows)
    order = bench.order(**LONG)
    directory = bench.folder / "attempt-1"
    order.write(directory)
    disks.fill(disk, leave=left)
    pid = faults.fork(lambda: os._exit(worker.main(directory)))
    (directory / GATE).touch()
    assert faults.ended(pid) == code
    assert is_disk_full(directory) is (code == 0)


@pytest.mark.parametrize(("left", "code"), [(40_000, 0), (0, worker.UNTOLD)])
def test_a_disk_that_is_full_from_the_start_ends_the_worker_at_once(
    tmp_path: Path, tiny_model: Path, rows: Path, left: int, code: int
) -> None:
    disk = tmp_path / "disk"
    disks.on_a_small_disk(disk, "300k", begin_without_room, disk, tiny_model, rows, left, code)


def publish_without_room(disk: Path, tiny_model: Path, rows: Path) -> None:
    bench = Bench(rows.parent / "job", tiny_model, rows)
    order = replace(bench.order(steps=1), output_path=str(disk / "out"))
    directory = bench.folder / "attempt-1"
    # Enough for the weights, for which it is looked at before, but not for adapter and tokenizer beside them.
    filler = disks.fill(disk, leave=90_000)
    assert faults.ended(start(directory, order)) == 0
    assert is_disk_full(directory)
    assert records(directory)[-1].data["error"].startswith("The disk is full: publishing the model out failed")
    assert [path.name for path in disk.iterdir()] == [filler.name]


def test_a_model_for_which_the_disk_is_too_small_leaves_nothing_of_itself_there(
    tmp_path: Path, tiny_model: Path, rows: Path
) -> None:
    disk = tmp_path / "disk"
    disks.on_a_small_disk(disk, "300k", publish_without_room, disk, tiny_model, rows)


def be_refused(folder: Path, tiny_model: Path, rows: Path, number: int) -> None:
    bench = Bench(folder, tiny_model, rows)
    order = bench.order(**LONG)
    directory = bench.folder / "attempt-1"
    pid = start(directory, order, fault=(60, faults.fail(number)))
    assert faults.ended(pid) == worker.UNTOLD
    words = (directory / "stderr.log").read_text().splitlines()[-1]
    assert words.startswith("The worker could not tell its journal how it ended: ")
    assert os.strerror(number) in words
    assert str(directory / JOURNAL) in words
    saved = checkpoints(directory)
    assert [manifest.verify(directory / CHECKPOINTS / f"step-{step:08d}").facts["step"] for step in saved] == saved


@pytest.mark.parametrize("number", [errno.EIO, pytest.param(errno.EROFS, marks=pytest.mark.slow)])
def test_a_journal_that_the_disk_refuses_ends_the_worker_with_the_reason_on_its_error_output(
    tmp_path: Path, tiny_model: Path, rows: Path, number: int
) -> None:
    clean(be_refused, tmp_path / "job", tiny_model, rows, number)


def be_left_alone(folder: Path, tiny_model: Path, rows: Path, harm: str) -> None:
    bench = Bench(folder, tiny_model, rows)
    order = bench.order(**LONG)
    directory = bench.folder / "attempt-1"
    words = rows.with_name("words")
    words.touch()
    (directory / "stderr.log").symlink_to(words)
    pid = start(directory, order)
    eventually(lambda: checkpoints(directory), what="a checkpoint")
    if harm == "removed":
        # As the removal of a run does it: first its name goes.
        gone = directory.rename(directory.with_name(".removed-attempt-1"))
        eventually(lambda: not shutil.rmtree(gone, ignore_errors=True) and not gone.exists(), what="the removal")
    else:
        os.truncate(directory / JOURNAL, 100)
    assert faults.ended(pid) == worker.UNTOLD
    assert f"was {harm} under its worker" in words.read_text().splitlines()[-1]
    assert directory.exists() is (harm == "cut")


@pytest.mark.parametrize("harm", ["removed", pytest.param("cut", marks=pytest.mark.slow)])
def test_a_worker_whose_folder_is_taken_away_ends_instead_of_training_for_nobody(
    tmp_path: Path, tiny_model: Path, rows: Path, harm: str
) -> None:
    clean(be_left_alone, tmp_path / "job", tiny_model, rows, harm)
