"""Workers as processes that can be killed, without the seconds that a new interpreter needs to load its libraries.

A server process loads them once and forks; each fork runs the worker's own `main` on an attempt's directory.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from engine.order import GATE, Order

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["engine.trainer.finetune", "engine.trainer.train", "engine.trainer.__main__", "peft", "bitsandbytes"]
)


@dataclass(frozen=True)
class Fate:
    """A signal that a worker sends itself once its journal has come so far: no other process has to be quick for it.

    `words` are a part of the line that brings it about; without any it is the first of training step `step` or later.
    """

    words: str = ""
    step: int = 0
    number: int = signal.SIGKILL
    after_s: float = 0.0

    def is_told_by(self, data: dict[str, Any]) -> bool:
        """Say whether this line of the journal brings it about."""
        if self.words:
            return self.words in json.dumps(data)
        return data.get("phase") == "train" and data["step"] >= self.step

    def come(self) -> None:
        """Come about."""
        if self.after_s:
            threading.Timer(self.after_s, os.kill, (os.getpid(), self.number)).start()
        else:
            os.kill(os.getpid(), self.number)


def _work(directory: str, fate: Fate | None) -> None:
    import torch

    from engine.trainer.__main__ import main

    if fate:
        _meet(fate)
    os.setsid()
    for stream, name in ((1, "stdout.log"), (2, "stderr.log")):
        os.dup2(os.open(Path(directory) / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), stream)
    torch.set_num_threads(1)
    os._exit(main(Path(directory)))


def _meet(fate: Fate) -> None:
    """Have this process meet its fate, once."""
    from engine.journal import JournalWriter

    append_all = JournalWriter.append_all
    met: list[Fate] = []

    def told(self: JournalWriter, entries: Iterable[tuple[str, dict[str, Any]]], *, durable: bool = False) -> None:
        lines = list(entries)
        append_all(self, lines, durable=durable)
        if not met and any(fate.is_told_by(data) for _, data in lines):
            met.append(fate)
            fate.come()

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


def _fork(directory: Path, fate: Fate | None = None) -> BaseProcess:
    process = _CONTEXT.Process(target=_work, args=(str(directory), fate))
    process.start()
    return process


def launch(directory: Path, **_: object) -> Forked:
    """Start a worker behind its gate: what a supervisor takes for `launch`."""
    return Forked(_fork(directory))


def launching(*fates: Fate | None) -> Callable[..., Forked]:
    """Return a `launch` whose first workers meet these fates in turn, and whose later ones meet none."""
    left = iter(fates)
    return lambda directory, **_: Forked(_fork(directory, next(left, None)))


def start(directory: Path, order: Order, *, dying_at: str = "", fate: Fate | None = None) -> BaseProcess:
    """Write an attempt's order into its directory, open its gate and start its worker.

    `dying_at`: it ends by signal 9 when a line of its journal holds these words.
    """
    order.write(directory)
    (directory / GATE).touch()
    return _fork(directory, Fate(dying_at) if dying_at else fate)


def begin(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """Begin a module's function in a process that has loaded the libraries and used none: their threads do not fork."""
    process = _CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process
