"""Dialect A: grow a model, train what is new, and follow it: the curve by `since_step`, the log by `since`.

python examples/fusion_train.py [--model starter] [--dataset starter] [--cycles 2] [--steps 10]
"""

from __future__ import annotations

import argparse
import time
import uuid
from typing import Any

from client import call

POLL_S = 1.0


def named(entries: list[dict[str, Any]], name: str) -> str:
    """Return the id of the newest entry with a name."""
    return str(max((entry for entry in entries if entry["name"] == name), key=lambda entry: entry["version"])["id"])


def main() -> None:
    """Submit, poll until the job is finished, print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dataset", default="starter")
    parser.add_argument("--cycles", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="of a cycle")
    asked = parser.parse_args()

    job = call(
        "POST",
        "/jobs",
        {
            "type": "train",
            "idempotency_key": str(uuid.uuid4()),  # the same key again would answer with the same job
            "base_model_id": named(call("GET", "/base-models"), asked.model),
            "dataset_id": named(call("GET", "/datasets"), asked.dataset),
            "hyperparams": {"turns": 1, "cycles": asked.cycles, "steps_per_cycle": asked.steps},
        },
    )
    print(f"job {job['id']}")

    # By phase and step: a run that went on after a kill writes its newest steps again, and the later value counts.
    curve: dict[tuple[str, int], dict[str, Any]] = {}
    step, line = -1, 0
    while True:
        # Asked before the curve and the log: what they miss now, the next round finds, and none comes after the last.
        job = call("GET", f"/jobs/{job['id']}")
        news = call("GET", f"/jobs/{job['id']}/metrics?since_step={step}")
        curve |= {(point["phase"], point["step"]): point for point in news["points"]}
        step = news["latest_step"]
        logs = call("GET", f"/jobs/{job['id']}/logs?since={line}")
        line = logs["latest_seq"]
        for entry in logs["lines"]:
            print(f"  | {entry['text']}")
        if news["points"]:
            last = news["points"][-1]
            print(f"{job['status']:<13}{job['progress']:>5.0%}  step {last['step']:>6}  loss {last['loss']}")
        if job["status"] in ("completed", "failed", "cancelled"):
            break
        time.sleep(POLL_S)

    if job["status"] != "completed":
        raise SystemExit(f"The job {job['status']}: {job.get('error', '')}")
    result = call("GET", f"/jobs/{job['id']}/result")
    print(f"{len(curve)} points; perplexity {result['ppl_baseline']:.2f} -> {result['ppl_final']:.2f}", end="")
    print(f"; {result['params_delta']:,} parameters more, output changed by {result['function_preservation']:.1e}")


if __name__ == "__main__":
    main()
