"""A light worker for loops: it obeys the real one's file contract (gate, order, journal, checkpoints), no more.

It stands where a data folder's `trainer_python` is expected (see `tests.crash.light`), so that everything above it is
the real thing. Only light modules are imported here, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from engine import atomic, process
from engine.journal import JournalWriter
from engine.order import JOURNAL, Order
from engine.trainer import __main__ as real
from engine.trainer.reporter import Reporter


def newest_step(order: Order) -> int:
    """Return the step of the newest checkpoint, 0 for none."""
    found = [path for root in order.checkpoint_roots for path in Path(root).glob("step-*")]
    return max((int(path.name[5:]) for path in found), default=0)


def work(
    directory: Path,
    pids: Path,
    *,
    gate_s: float = 30.0,
    patient: str = "",
    waits_at: int = -1,
    waits_for: str = "",
    step_s: float = 0.0,
    at_step: int = -1,
    do: str = "",
    times: int = 1_000_000,
    pad: int = 0,
    deaf: bool = False,
    config: dict[str, Any] | None = None,
) -> None:
    """Carry out an order. At `at_step` it comes to a bad end, `do`, in its first `times` attempts.

    It leaves `pad` bytes on the disk in each step, as one that saves does; with `config` it makes a model of no more
    than that config.json. `deaf`: it does not listen to requests to save, as one of an earlier version. While the file
    `patient` is there, it does not lose patience with its gate; at step `waits_at` it waits for the file `waits_for`.
    """
    if deaf:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {process.SAVE})
    (pids / str(os.getpid())).touch()
    real.GATE_SECONDS = gate_s
    while not real.wait_for_gate(directory):
        if not (patient and Path(patient).exists()):
            os._exit(3)
    order = Order.read(directory)
    reporter = Reporter(JournalWriter(directory / JOURNAL, order.fence))
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asked: list[int] = []
    if not deaf:
        signal.signal(process.SAVE, lambda number, frame: asked.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {process.SAVE})
    ballast = directory / "ballast"
    try:
        atomic.write_bytes(ballast, os.urandom(65536))
        reporter.state("staging", "loading")
        first = newest_step(order)
        reporter.state("running", "training")
        reporter.resume(first)
        for step in range(first + 1, order.hyperparams.get("steps", 1) + 1):
            point = {"step": step, "phase": "train", "ts": time.time(), "loss": 1.0 / step, "lr": 0.1, "epoch": 0.0}
            reporter.points([point])
            if pad:
                with (directory / "pad").open("ab", buffering=0) as file:
                    atomic.write_all(file.fileno(), bytes(pad))
            while step == waits_at and not Path(waits_for).exists():
                time.sleep(step_s)
            if step == at_step and order.fence <= times:
                misbehave(do)
            if step % order.hyperparams["save_steps"] == 0 or stop or asked:
                asked.clear()
                save(order, reporter, step)
            if stop:
                reporter.end("preempted")
                os._exit(0)
            time.sleep(step_s)
        reporter.state("uploading", "publishing")
        if config:
            make_model(order, reporter, config)
        reporter.result({"ppl_final": 1.0})
        atomic.discard(ballast)
        reporter.end("completed")
    except Exception as error:
        if not atomic.is_full(error):
            raise
        atomic.discard(ballast)
        reporter.end("preempted", "No space left on the disk.", "disk_full")
    os._exit(0)


def save(order: Order, reporter: Reporter, step: int) -> None:
    """Publish something that counts as a checkpoint."""
    final = Path(order.checkpoint_roots[0]) / f"step-{step:08d}"
    staged = final.with_name(f".stage-{step}")
    staged.mkdir(parents=True)
    atomic.write_json(staged / "state.json", {"step": step})
    atomic.publish(staged, final)
    facts = {"step": step, "epoch": 0.0, "loss": 1.0, "eval_loss": None, "lr": 0.1}
    reporter.checkpoint(final, facts, 2)


def make_model(order: Order, reporter: Reporter, config: dict[str, Any]) -> None:
    """Publish something that counts as a model."""
    staged = Path(f"{order.output_path}.stage")
    staged.mkdir(parents=True)
    atomic.write_json(staged / "config.json", config)
    atomic.publish(staged, Path(order.output_path), replace=True)
    named = {"id": order.output_id, "name": order.output_name, "path": order.output_path}
    reporter.model({**named, "family": config["model_type"], "params": 7, "precision": "bf16"})


def misbehave(how: str) -> None:
    """Come to a bad end: by a signal of this name, or `exit N` with that status."""
    if how.startswith("exit"):
        print("RuntimeError: it broke", file=sys.stderr, flush=True)
        os._exit(int(how.split()[1]))
    os.kill(os.getpid(), getattr(signal, how))
