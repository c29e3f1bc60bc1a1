"""Start a worker on this machine: a detached process with files for its output."""

from __future__ import annotations

import subprocess
from pathlib import Path

from engine import process


def launch(directory: Path, *, python: str, workers: int) -> subprocess.Popen[bytes]:
    """Start the worker of an attempt's directory; it waits there for its gate. Raises OSError."""
    return process.spawn(
        [python, "-m", "engine.trainer", str(directory)],
        cwd=directory,
        stdout=directory / "stdout.log",
        stderr=directory / "stderr.log",
        environment=process.training_environment(workers),
    )
