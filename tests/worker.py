"""Workers as processes that can be killed, without the seconds that a new interpreter needs to load its libraries.

A server process loads them once and forks; each fork runs the worker's own `main` on an attempt's directory.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from engine.order import GATE, Order

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["engine.trainer.finetune", "engine.trainer.train", "engine.trainer.__main__", "peft", "bitsandbytes"]
)


def _work(directory: str, dying_at: str = "") -> None:
    import torch

    from engine.trainer.__main__ import main

    if dying_at:
        _die_at(dying_at)
    os.setsid()
    for stream, name in ((1, "stdout.log"), (2, "stderr.log")):
        os.dup2(os.open(Path(directory) / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), stream)
    torch.set_num_threads(1)
    os._exit(main(Path(directory)))


def _die_at(words: str) -> None:
    """End this process by signal 9 as soon as it tells that it does what these words are a part of."""
    from engine.journal import JournalWriter

    append_all = JournalWriter.append_all

    def told(self: JournalWriter, entries: Iterable[tuple[str, dict[str, Any]]], *, durable: bool = False) -> None:
        lines = list(entries)
        append_all(self, lines, durable=durable)
        if any(words in json.dumps(data) for _, data in lines):
            os.kill(os.getpid(), signal.SIGKILL)

    JournalWriter.append_all = told  # type: ignore[method-assign]


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


def _fork(directory: Path, dying_at: str = "") -> BaseProcess:
    process = _CONTEXT.Process(target=_work, args=(str(directory), dying_at))
    process.start()
    return process


def launch(directory: Path, **_: object) -> Forked:
    """Start a worker behind its gate: what a supervisor takes for `launch`."""
    return Forked(_fork(directory))


def start(directory: Path, order: Order, *, dying_at: str = "") -> BaseProcess:
    """Write an attempt's order into its directory, open its gate and start its worker.

    `dying_at`: it ends by signal 9 when a line of its journal holds these words.
    """
    order.write(directory)
    (directory / GATE).touch()
    return _fork(directory, dying_at)


def begin(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """Begin a module's function in a process that has loaded the libraries and used none: their threads do not fork."""
    process = _CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process
