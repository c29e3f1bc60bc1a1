"""A worker: waits at its gate, carries out its order, says how it ended. Run: python -m engine.trainer RUN_DIR

The rule: nothing is done before the gate opens, for until then no store knows this process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from engine import atomic, process
from engine.errors import DiskFailed, EngineError, NoSpace
from engine.journal import JournalLost, JournalWriter
from engine.order import GATE, JOURNAL, NOT_ADMITTED, UNTOLD, Order

if TYPE_CHECKING:
    from engine.trainer.reporter import Reporter
    from engine.trainer.run import StopFlag

GATE_SECONDS = 30.0
# Given up when the disk is full, so that the journal can still say so; random, for zeros may take no room.
BALLAST_BYTES = 65536

Ending: TypeAlias = "tuple[str, str | None, str | None]"


def wait_for_gate(directory: Path) -> bool:
    """Return True when the gate opens, False after 30 s without."""
    deadline = time.monotonic() + GATE_SECONDS
    while not (directory / GATE).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def main(directory: Path) -> int:
    """Carry out the order in `directory` and return the exit code: 0 where the journal says how it ended."""
    # Else it would end a worker that whoever started it did not shield; `StopFlag` listens to it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {process.SAVE})
    if not wait_for_gate(directory):
        print("The gate did not open: no supervisor committed this worker. Leaving.", file=sys.stderr)
        return NOT_ADMITTED
    try:
        order = Order.read(directory)
        journal = JournalWriter(directory / JOURNAL, order.fence)
        carry_out(order, journal, directory / "ballast")
    except Exception as error:  # noqa: BLE001  (the edge of the process: what the journal cannot be told, is told here)
        with suppress(OSError):  # a full disk takes no words either
            traceback.print_exc()
            print(f"The worker could not tell its journal how it ended: {error}", file=sys.stderr, flush=True)
        return UNTOLD
    return 0


def carry_out(order: Order, journal: JournalWriter, ballast: Path) -> None:
    """Carry out an order and end the journal with how it went. Raises OSError or JournalLost where that cannot be."""
    from engine.trainer.reporter import Reporter

    reporter = Reporter(journal)
    # What a library says to its own developers is no news to a user.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.showwarning = lambda message, category, *rest: reporter.log(f"{category.__name__}: {message}", "warning")
    ending: Ending = ("completed", None, None)
    try:
        # Imported behind the gate: seconds of loading that a worker nobody knows must not spend.
        from engine.trainer.run import StopFlag

        stop = StopFlag()
        stop.install()
        atomic.write_bytes(ballast, os.urandom(BALLAST_BYTES))
        reporter.state("staging", "loading the training libraries")
        from transformers.utils import logging

        logging.disable_progress_bar()
        if order.start:
            from engine.trainer import start_model

            start_model.make(order, reporter)
        verb(order.type)(order, reporter, stop)
    except JournalLost:
        raise
    except BaseException as error:  # noqa: BLE001  (the edge of the process: also a library's exit or panic is recorded)
        ending = ending_of(error, order)
        if ending[2] == "error":
            with suppress(OSError):  # the end matters more
                reporter.log(traceback.format_exc(), "error")
    if ending[2] == "disk_full":
        atomic.discard(ballast)
    try:
        reporter.end(*ending)
    except OSError as error:
        if not atomic.is_full(error):
            raise
        atomic.discard(ballast)
        reporter.end(*ending)
    atomic.discard(ballast)


def verb(type: str) -> Callable[[Order, Reporter, StopFlag], None]:
    """Return what carries out jobs of a type: a file for each."""
    if type == "train":
        from engine.trainer.train import run_job
    elif type == "contract":
        from engine.trainer.contract.job import run_job
    else:
        from engine.trainer.finetune import run_job
    return run_job


def ending_of(error: BaseException, order: Order) -> Ending:
    """Return what an error means for the run: outcome, text for its user, cause."""
    if not isinstance(error, Exception):
        # None of those below; and an interrupt may have come before torch, which these need, was loaded.
        return "failed", explain(error), "error"
    from engine.data.rows import RowError
    from engine.trainer.ladder import OutOfMemory, is_out_of_memory
    from engine.trainer.run import Diverged, Stopped

    text = str(error)
    sentence = text[:1].upper() + text[1:]
    kinds: dict[type[Exception], Ending] = {
        Stopped: ("preempted", None, None),
        # Of several datasets the text names the one.
        RowError: ("failed", sentence if order.more_datasets else f"Dataset {order.dataset_name}, {text}", "data"),
        Diverged: ("failed", sentence, "nan"),
        OutOfMemory: ("failed", sentence, "oom"),
        NoSpace: ("preempted", text, "disk_full"),
        DiskFailed: ("failed", text, "disk"),
        EngineError: ("failed", text, "unsupported"),
    }
    for kind, ending in kinds.items():
        if isinstance(error, kind):
            return ending
    if atomic.is_full(error):
        return "preempted", "No space left on the disk.", "disk_full"
    return "failed", explain(error), "oom" if is_out_of_memory(error) else "error"


def explain(error: BaseException) -> str:
    """Return an error's text with the remedy where one is known."""
    text = f"{type(error).__name__}: {error}".strip()
    if "out of memory" in text.lower():
        return f"{text.splitlines()[0]} Lower seq_len or batch_size, or use a smaller model."
    return text


if __name__ == "__main__":
    code = 1  # as of any program that an error ended: the journal is not to blame
    try:
        code = main(Path(sys.argv[1]))
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001  (nobody prints it after this)
        with suppress(OSError):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        # Not a plain return: threads of the training libraries may hang an interpreter's end, also after an error.
        os._exit(code)
