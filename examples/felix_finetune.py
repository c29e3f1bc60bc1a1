"""Dialect B: upload rows, fine-tune on them, tail the log, and download the weights as a zip.

python examples/felix_finetune.py [--base-model starter] [--rows FILE.jsonl] [--epochs 1] [--out weights.zip]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from client import call, fetch, put_file

POLL_S = 1.0
# So that the script runs without a file: small sums, as conversations.
SUMS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {a} plus {b}?"},
            {"role": "assistant", "content": f"{a} plus {b} is {a + b}."},
        ]
    }
    for a in range(8)
    for b in range(8)
]


def upload(name: str, content: bytes) -> int:
    """Send rows as a new version of a dataset, wait until it is ready, and return the version."""
    place = call(
        "POST",
        "/felix/datasets/upload/url",
        {"dataset_name": name, "dataset_type": "decoder", "filename": "rows.jsonl"},
    )
    put_file(place["presigned_url"], content, "application/jsonl")
    call("POST", "/felix/datasets/upload/process", {"dataset_id": place["dataset_id"]})
    version = int(place["version_number"])
    while True:
        found = call("GET", f"/felix/datasets/{name}/{version}")
        state: dict[str, Any] = found.get("dataset", found)
        print(f"dataset {name} {version}: {state['status']}")
        if state["status"] == "failed":
            raise SystemExit(json.dumps(state))
        if state["status"] == "ready":
            return version
        time.sleep(POLL_S)


def newer(logs: list[dict[str, Any]], last: str) -> list[dict[str, Any]]:
    """Return the lines behind the one with the id `last`, which may be gone: the server keeps the newest 2,000."""
    ids = [entry["id"] for entry in logs]
    return logs[ids.index(last) + 1 :] if last in ids else logs


def main() -> None:
    """Upload, submit, poll until the job is finished, download."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base-model", default="starter")
    parser.add_argument("--rows", type=Path, help="a JSONL file of messages; small sums without one")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--out", default="weights.zip")
    asked = parser.parse_args()

    content = asked.rows.read_bytes() if asked.rows else "\n".join(map(json.dumps, SUMS)).encode()
    version = upload("example-rows", content)
    job = call(
        "POST",
        "/felix/training-jobs",
        {
            "model_name": "example",
            "base_model": asked.base_model,
            "datasets": [{"name": "example-rows", "version": version}],
            "nr_epochs": asked.epochs,
        },
    )
    print(f"job {job['id']}: {job['status']}")

    last = ""
    while True:
        job = call("GET", f"/felix/training-jobs/{job['id']}")
        for entry in newer(call("GET", f"/felix/training-jobs/{job['id']}/logs")["logs"], last):
            print(f"  | {entry['message']}")
            last = entry["id"]
        print(f"{job['status']:<10}{job['progress_percent']:>5.0f} %  epoch {job['current_epoch']}")
        if job["is_terminal_status"]:
            break
        time.sleep(POLL_S)

    if job["status"] != "complete":
        raise SystemExit(f"The job {job['status']}: {job['error_message']}")
    print(f"held-out loss {job['metrics']['final_validation_loss']:.4f}")
    place = call("GET", f"/felix/training-jobs/{job['id']}/download")
    print(f"{asked.out}: {fetch(place['download_url'], asked.out):,} bytes ({place['file_name']})")


if __name__ == "__main__":
    main()
