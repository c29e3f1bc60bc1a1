"""A checkpoint that is asked for in the midst of training: made at the end of the step, once; all else stays."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from engine import process
from engine.trainer import checkpoint, loop
from engine.trainer.run import Run, StopFlag
from tests.crash import faults
from tests.trainer.conftest import Bench, Interrupting


def asking_at(bench: Bench, step: int, **settings: Any) -> Run:
    """Return a run that is asked for a checkpoint when the point of `step` was told."""
    run = bench.make_run(bench.order(steps=5, save_steps=100, **settings), stop_at=step)
    reporter = run.reporter
    assert isinstance(reporter, Interrupting)
    reporter._then = lambda: setattr(run.stop, "save_requested", True)
    return run


def steps_saved(run: Run) -> list[int]:
    return sorted(map(checkpoint.step_of, checkpoint.published(run.roots)))


def test_the_loop_saves_at_the_end_of_the_step_and_goes_on_as_it_would_have(bench: Bench) -> None:
    plain = bench.make_run(bench.order(steps=5, save_steps=100))
    loop.train(plain, loop.resume(plain))
    run = asking_at(bench, 3)
    # The first attempt's checkpoint of step 5 is none of this run's.
    alone = dataclasses.replace(run, roots=run.roots[:1])
    loop.train(alone, loop.resume(alone))
    assert steps_saved(alone) == [3, 5]
    assert bench.losses(2) == bench.losses(1)
    assert not run.stop.save_requested
    told = [record.data["step"] for record in bench.records() if record.kind == "checkpoint"]
    assert told == [3, 5]


def test_a_request_that_comes_during_a_save_is_that_save(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = asking_at(bench, 2)
    save = checkpoint.save

    def interrupted(*arguments: Any) -> Path:
        directory = save(*arguments)
        run.stop.save_requested = True
        return directory

    monkeypatch.setattr("engine.trainer.checkpoint.save", interrupted)
    loop.train(run, loop.resume(run))
    assert steps_saved(run) == [2, 5]


def test_weights_that_may_be_spoilt_are_not_saved_on_request_and_the_request_stands(bench: Bench) -> None:
    run = asking_at(bench, 2)
    reporter = run.reporter
    assert isinstance(reporter, Interrupting)
    state = loop.resume(run)

    def ask() -> None:
        run.stop.save_requested = True
        state.guard.no_numbers = 1

    reporter._then = ask
    loop.train(run, state)
    assert steps_saved(run) == [3, 5]


def test_training_aside_leaves_the_request_to_the_jobs_own(bench: Bench) -> None:
    run = asking_at(bench, 2)
    aside = dataclasses.replace(run, aside=True)
    loop.train(aside, loop.resume(aside))
    assert steps_saved(aside) == [5]
    assert run.stop.save_requested


def test_a_request_that_came_before_the_worker_listened_is_heard_when_it_does() -> None:
    def listening() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {process.SAVE})
        os.kill(os.getpid(), process.SAVE)
        stop = StopFlag()
        assert not stop.save_requested
        stop.install()
        assert stop.save_requested
        assert not stop.requested
        me = process.identify(os.getpid())
        assert me
        assert process.listens(me, process.SAVE)

    assert faults.forked(listening) == 0
