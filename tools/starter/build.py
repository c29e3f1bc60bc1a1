"""Rebuilds the starter model and data that ship in engine/assets.

The model begins as random weights and is trained by this project's own trainer, through the same queue, supervisor
and worker as any user's run. About 25 minutes on two otherwise idle CPU cores.

    python -m tools.starter.build [--out engine/assets]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from engine.paths import ASSETS, Home
from engine.running.supervisor import Supervisor
from engine.service import Service
from engine.settings import Settings
from tools.starter import blank, corpus

# Ten passes over the text: the held-out loss still falls there, and the rate has fallen to a tenth of its peak.
HYPERPARAMS = {
    "training_type": "full",
    "steps": 1500,
    "seq_len": 512,
    "batch_size": 4,
    "lr": 2e-3,
    "warmup_ratio": 0.05,
    "weight_decay": 0.1,
    "val_fraction": 0.02,
    "save_steps": 100,
    "eval_steps": 100,
    "output_name": "starter",
}
# What a user needs to load the model; the card and manifest of the run tell of this machine's paths.
SHIPPED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def train(service: Service, model: Path, text: Path) -> Path:
    """Train `model` on `text` and return the finished model's folder. Raises RuntimeError where the run fails."""
    service.add_model(str(model), "blank")
    service.add_dataset(str(text), "text")
    request = {"type": "finetune", "idempotency_key": "starter", "base_model_id": "blank", "dataset_id": "text"}
    job = service.submit({**request, "hyperparams": HYPERPARAMS}).job
    supervisor = Supervisor(service)
    shown = -1
    while not job.finished:
        supervisor.tick()
        time.sleep(0.5)
        job = service.job(job.id)
        if job.step // 100 != shown:
            shown = job.step // 100
            print(f"step {job.step} of {job.total_steps}, {job.eta_s or 0:.0f} s to go", flush=True)
    supervisor.close()
    if job.output_model_id is None:
        raise RuntimeError(f"the run is {job.state}: {job.error}")
    print(f"perplexity of held-out text: {(service.result(job.id) or {})['ppl_final']:.1f}")
    return Path(service.model(job.output_model_id).path)


def main() -> int:
    """Build both assets; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ASSETS, metavar="DIR")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        corpus.main(["--out", str(work)])
        start = ["--text", str(work / "text.jsonl"), "--rows", str(work / "rows.jsonl"), "--out", str(work / "blank")]
        blank.main(start)
        finished = train(Service(Home(work / "home"), config=Settings()), work / "blank", work / "text.jsonl")
        for name in ("rows.jsonl", "NOTICE"):
            (out / "starter-data").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(work / name, out / "starter-data" / name)
        (out / "starter-model").mkdir(parents=True, exist_ok=True)
        for name in SHIPPED:
            shutil.copyfile(finished / name, out / "starter-model" / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
