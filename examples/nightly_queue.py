"""Six runs for a night: two learning rates by three ranks, queued at once, ranked in the morning.

The queue is the server's: this script may be stopped and started again. It asks under the same idempotency keys, so it
finds its runs and makes none twice.

    python examples/nightly_queue.py [--model starter] [--dataset starter] [--steps 20] [--night NAME]
"""

from __future__ import annotations

import argparse
import datetime
import time
from typing import Any

from client import call

POLL_S = 2.0
RATES = (5e-4, 2e-3)
RANKS = (8, 16, 32)
FINISHED = ("completed", "failed", "cancelled")


def submit(night: str, model: str, dataset: str, steps: int) -> list[dict[str, Any]]:
    """Queue the six runs of a night, or find them."""
    runs = []
    for lr in RATES:
        for rank in RANKS:
            name = f"{night} lr {lr:g} rank {rank}"
            request = {
                "type": "finetune",
                "idempotency_key": name,
                "name": name,
                "tags": [night],
                "base_model_id": model,
                "dataset_id": dataset,
                "hyperparams": {"steps": steps, "lr": lr, "lora_rank": rank, "lora_alpha": 2 * rank},
            }
            runs.append(call("POST", "/jobs", request))
    return runs


def main() -> None:
    """Queue, wait, and print the runs by their held-out perplexity."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dataset", default="starter")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--night", default=f"night {datetime.date.today()}", help="the same name finds the same runs")
    asked = parser.parse_args()

    runs = submit(asked.night, asked.model, asked.dataset, asked.steps)
    said = ""
    while any(run["status"] not in FINISHED for run in runs):
        time.sleep(POLL_S)
        runs = [call("GET", f"/jobs/{run['id']}") for run in runs]
        now = ", ".join(f"{run['status']} {run['progress']:.0%}" for run in runs)
        if now != said:
            print(now)
        said = now

    results = {run["id"]: call("GET", f"/jobs/{run['id']}/result") for run in runs if run["status"] == "completed"}
    print(f"{'run':<40}{'perplexity':>11}{'minutes':>9}")
    for run in sorted(runs, key=lambda run: results.get(run["id"], {}).get("ppl_final", float("inf"))):
        if result := results.get(run["id"]):
            print(f"{run['name']:<40}{result['ppl_final']:>11.2f}{result['gpu_seconds'] / 60:>9.1f}")
        else:
            print(f"{run['name']:<40}{run['status']:>11}  {run.get('error', '')}")
    if not results:
        raise SystemExit("No run was completed.")


if __name__ == "__main__":
    main()
