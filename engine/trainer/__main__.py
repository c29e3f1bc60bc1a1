"""A worker: waits at its gate, carries out its order, says how it ended. Run: python -m engine.trainer RUN_DIR

The rule: nothing is done before the gate opens, for until then no store knows this process.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

from engine.errors import EngineError, NoSpace
from engine.journal import JournalWriter
from engine.order import GATE, JOURNAL, Order

GATE_SECONDS = 30.0
BALLAST_BYTES = 65536


def wait_for_gate(directory: Path) -> bool:
    """Return True when the gate opens, False after 30 s without."""
    deadline = time.monotonic() + GATE_SECONDS
    while not (directory / GATE).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def main(directory: Path) -> int:
    """Carry out the order in `directory` and return the exit code."""
    if not wait_for_gate(directory):
        print("The gate did not open: no supervisor committed this worker. Leaving.", file=sys.stderr)
        return 3
    order = Order.read(directory)
    journal = JournalWriter(directory / JOURNAL, order.fence)

    # Given up when the disk is full, so that the journal can still say so.
    ballast = directory / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))

    # Imported behind the gate: seconds of loading that a worker nobody knows must not spend.
    from engine.data.rows import RowError
    from engine.trainer.ladder import OutOfMemory, is_out_of_memory
    from engine.trainer.reporter import Reporter
    from engine.trainer.run import Diverged, StopFlag, Stopped

    stop = StopFlag()
    stop.install()
    reporter = Reporter(journal)
    reporter.state("staging", "loading the training libraries")
    # What a library says to its own developers is no news to a user.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.showwarning = lambda message, category, *rest: reporter.log(f"{category.__name__}: {message}", "warning")
    try:
        from transformers.utils import logging

        from engine.trainer import finetune

        logging.disable_progress_bar()
        finetune.run_job(order, reporter, stop)
    except Stopped:
        reporter.end("preempted")
    except RowError as error:
        reporter.end("failed", f"Dataset {order.dataset_name}, {error}", "data")
    except Diverged as error:
        reporter.end("failed", str(error)[:1].upper() + str(error)[1:], "nan")
    except OutOfMemory as error:
        reporter.end("failed", str(error)[:1].upper() + str(error)[1:], "oom")
    except NoSpace as error:
        ballast.unlink(missing_ok=True)
        reporter.end("preempted", str(error), "disk_full")
    except EngineError as error:
        reporter.end("failed", str(error), "unsupported")
    except Exception as error:  # noqa: BLE001  (the edge of the process: everything is recorded here)
        # safetensors tells of the system's errors in words alone.
        if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
            ballast.unlink(missing_ok=True)
            reporter.end("preempted", "No space left on the disk.", "disk_full")
            return 0
        reporter.log(traceback.format_exc(), "error")
        reporter.end("failed", explain(error), "oom" if is_out_of_memory(error) else "error")
    else:
        reporter.end("completed")
    return 0


def explain(error: Exception) -> str:
    """Return an error's text with the remedy where one is known."""
    text = f"{type(error).__name__}: {error}".strip()
    if "out of memory" in text.lower():
        return f"{text.splitlines()[0]} Lower seq_len or batch_size, or use a smaller model."
    return text


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    # Not a plain return: threads of the training libraries may hang an interpreter's end.
    os._exit(code)
