"""Workers as processes that can be killed, without the seconds that a new interpreter needs to load its libraries.

A server process loads them once and forks; each fork runs the worker's own `main` on an attempt's directory.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

from engine.order import GATE, Order

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["engine.trainer.finetune", "engine.trainer.__main__", "peft", "bitsandbytes"])


def _work(directory: str) -> None:
    import torch

    from engine.trainer.__main__ import main

    output = os.open(Path(directory) / "stdout.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    torch.set_num_threads(1)
    os._exit(main(Path(directory)))


def start(directory: Path, order: Order) -> BaseProcess:
    """Write an attempt's order into its directory, open its gate and start its worker."""
    order.write(directory)
    (directory / GATE).touch()
    process = _CONTEXT.Process(target=_work, args=(str(directory),))
    process.start()
    return process
