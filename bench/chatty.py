"""A worker that trains nothing and reports much: gate, order and journal as `engine.trainer` has them.

python -m bench.chatty DIRECTORY RATE SECONDS
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine import process
from engine.journal import JournalWriter
from engine.order import JOURNAL, Order
from engine.trainer.__main__ import wait_for_gate
from engine.trainer.reporter import Reporter

BEATS_PER_SECOND = 50


def point(step: int) -> dict[str, Any]:
    """Return a training point with every number that the loop reports, none of them round."""
    wave = math.sin(step / 7.3)
    return {
        "step": step,
        "phase": "train",
        "ts": time.time(),
        "loss": 2.0 + math.exp(-step / 9e4) + 0.1 * wave,
        "lr": 2e-4 * (1 + 0.01 * wave),
        "grad_norm": 0.7 + 0.13 * wave,
        "throughput": 2345.6 + 78.9 * wave,
        "vram_gb": 5.25 + 0.01 * wave,
        "tokens": step * 512,
        "epoch": step / 1771,
        "step_s": 0.12 + 0.01 * wave,
        "data_s": 0.0012 + 1e-4 * wave,
        "forward_s": 0.041 + 1e-3 * wave,
        "backward_s": 0.072 + 1e-3 * wave,
        "optimizer_s": 0.0051 + 1e-4 * wave,
        "save_s": 0.0,
        "eta_s": 1e4 - step * 0.12,
    }


def work(directory: Path, rate: float, seconds: float) -> None:
    """Report `rate` steps a second for `seconds`, then end as completed."""
    if not wait_for_gate(directory):
        sys.exit(3)
    journal = JournalWriter(directory / JOURNAL, Order.read(directory).fence)
    reporter = Reporter(journal)
    for state in ("staging", "running"):
        reporter.state(state)
    reporter.resume(0)
    began, step = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        due = int(elapsed * rate)
        if due > step:
            reporter.points([point(number) for number in range(step + 1, due + 1)])
            step = due
        time.sleep(1 / BEATS_PER_SECOND)
    reporter.state("uploading")
    reporter.result({"steps": step, "gpu_seconds": seconds})
    reporter.end("completed")


def launcher(rate: float, seconds: float) -> Callable[..., subprocess.Popen[bytes]]:
    """Return what a supervisor takes for `launch`: it starts this worker in place of the trainer's."""
    return partial(_launch, rate, seconds)


def _launch(rate: float, seconds: float, directory: Path, **_: object) -> subprocess.Popen[bytes]:
    return process.spawn(
        [sys.executable, "-m", "bench.chatty", str(directory), str(rate), str(seconds)],
        cwd=Path(__file__).parents[1],
        stdout=directory / "stdout.log",
        stderr=directory / "stderr.log",
        environment={},
    )


if __name__ == "__main__":
    work(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
