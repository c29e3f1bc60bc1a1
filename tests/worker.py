"""Workers as processes that can be killed, without the seconds that a new interpreter needs to load its libraries.

A server process loads them once and forks; each fork runs the worker's own `main` on an attempt's directory.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from engine.order import GATE, Order

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["engine.trainer.finetune", "engine.trainer.__main__", "peft", "bitsandbytes"])


def _work(directory: str) -> None:
    import torch

    from engine.trainer.__main__ import main

    os.setsid()
    for stream, name in ((1, "stdout.log"), (2, "stderr.log")):
        os.dup2(os.open(Path(directory) / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), stream)
    torch.set_num_threads(1)
    os._exit(main(Path(directory)))


class Forked:
    """What a supervisor needs of the process that it started, as of subprocess.Popen."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.pid = process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit status, once `poll` has seen it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._process.exitcode


def _fork(directory: Path) -> BaseProcess:
    process = _CONTEXT.Process(target=_work, args=(str(directory),))
    process.start()
    return process


def launch(directory: Path, **_: object) -> Forked:
    """Start a worker behind its gate: what a supervisor takes for `launch`."""
    return Forked(_fork(directory))


def start(directory: Path, order: Order) -> BaseProcess:
    """Write an attempt's order into its directory, open its gate and start its worker."""
    order.write(directory)
    (directory / GATE).touch()
    return _fork(directory)


def begin(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """Begin a module's function in a process that has loaded the libraries and used none: their threads do not fork."""
    process = _CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process
