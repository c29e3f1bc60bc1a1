"""What telemetry costs a training step: the same runs with the real journal and with a reporter that drops everything.

Two figures: the difference of the medians of the steps, in core time, and the time inside the reporter, which is far
less noisy. Held against a step of SmolLM2-135M of 1,024 tokens, the least that a default run does between two reports:
the bar is 1 % of that.

    python -m bench.loop_overhead [--rounds 4] [--steps 200] [--json]

It calls `engine.trainer.finetune.run_job` with `engine.trainer.reporter.Reporter` on an order, as the worker does.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from bench.contestants import Contestant, our_order, run
from bench.finetune_vs_trl import prepare
from bench.memory_plan import smollm2
from engine import process
from engine.journal import JournalWriter
from engine.order import JOURNAL
from engine.paths import STARTER_MODEL, STARTER_ROWS

TOKENS = 64  # in a step of the starter model: as short as a step gets, so that the difference shows
BAR = 0.01


def timed(folder: Path, steps: int, *, dropped: bool) -> dict[str, list[float]]:
    """Carry out one run; return the core-seconds from report to report, and the seconds spent in reporting."""
    import torch

    from engine.trainer import finetune
    from engine.trainer.reporter import Reporter
    from engine.trainer.run import StopFlag

    class Nowhere(JournalWriter):
        """A journal whose lines are not even encoded."""

        def append_all(self, *_: Any, **__: Any) -> None:
            """Drop the records."""

    class Timed(Reporter):
        """Remembers when it was told of a step, and how long it took over that."""

        def points(self, points: list[dict[str, Any]]) -> None:
            entered.append(time.process_time())
            begun = time.perf_counter()
            if not dropped:
                super().points(points)
            spent.append(time.perf_counter() - begun)

    torch.set_num_threads(1)  # the steps are too small for more
    entered: list[float] = []
    spent: list[float] = []
    folder.mkdir()
    order = our_order(STARTER_MODEL, STARTER_ROWS, folder, device="cpu", steps=steps, seq_len=TOKENS, sequences=1)
    journal = (Nowhere if dropped else JournalWriter)(folder / JOURNAL, order.fence)
    finetune.run_job(order, Timed(journal), StopFlag())
    journal.close()
    # The first is the model's judgement, the second comes after warm-up, and the last holds the final evaluation.
    return {"steps": [after - before for before, after in itertools.pairwise(entered[2:-1])], "spent": spent[2:-1]}


def compare(rounds: int, steps: int, folder: Path) -> dict[str, Any]:
    """Run all rounds, and SmolLM2; return seconds."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    seen: dict[bool, list[dict[str, list[float]]]] = {False: [], True: []}
    for number in range(rounds):
        for dropped in (False, True) if number % 2 else (True, False):
            seen[dropped].append(timed(folder / f"{number}-{dropped}", steps, dropped=dropped))
    medians = {dropped: [statistics.median(one["steps"]) for one in runs] for dropped, runs in seen.items()}
    model = folder / "smollm2"
    process.run_tool("engine.trainer.convert", [smollm2(), str(model)])
    work = prepare(model, folder, seq_len=1024, sequences=1, steps=8)
    large = run(Contestant("ours", "fusion-tui"), work, folder / "large", "cpu")
    return {
        "journal_step_s": statistics.median(medians[False]),
        "dropped_step_s": statistics.median(medians[True]),
        "difference_s": statistics.median(a - b for a, b in zip(medians[False], medians[True], strict=True)),
        "inside_s": statistics.median(seconds for one in seen[False] for seconds in one["spent"]),
        "smollm2_step_s": statistics.median(step.seconds for step in large.steps),
    }


def main() -> None:
    """Print the comparison, or with --json its figures; exit code 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    # What the trainer and its libraries say is not part of the table.
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        found = compare(asked.rounds, asked.steps, Path(folder))
    cost = max(found["difference_s"], found["inside_s"])
    if asked.json:
        print(json.dumps(found, indent=1))
    else:
        print(f"starter model, {TOKENS} tokens a step; {asked.rounds} rounds of {asked.steps} steps each, interleaved")
        for name, key in (("with the journal", "journal_step_s"), ("reports dropped", "dropped_step_s")):
            print(f"  {name:<18}{1000 * found[key]:>9.3f} ms of a core a step")
        for name, key in (("difference", "difference_s"), ("in the reporter", "inside_s")):
            print(f"  {name:<18}{1e6 * found[key]:>9.0f} µs a step")
        print(
            f"a step of SmolLM2-135M with 1,024 tokens: {found['smollm2_step_s']:.2f} s\n"
            f"telemetry's share of it: {cost / found['smollm2_step_s']:.4%}; of the starter model's step "
            f"{cost / found['dropped_step_s']:.2%}; bar {BAR:.0%}"
        )
    sys.exit(cost / found["smollm2_step_s"] >= BAR)


if __name__ == "__main__":
    main()
