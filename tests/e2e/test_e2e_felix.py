"""Dialect B with a real supervisor and a real training: from submit to weights that stock transformers loads."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from engine.service import Service
from fusion_tui.api.server import ApiServer
from tests.api.felix import client

LOADS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
said = model.generate(**tokenizer("What is 1 plus 2?", return_tensors="pt"), max_new_tokens=3)
assert said.shape[1] > 3 and torch.isfinite(model.model.embed_tokens.weight).all()
"""


@pytest.fixture
def felix(served: ApiServer, service: Service) -> Iterator[httpx.Client]:
    with client(service, served.url) as made:
        yield made


def test_a_training_job_from_submit_to_weights_that_load(felix: httpx.Client, service: Service, tmp_path: Path) -> None:
    asked = {
        "model_name": "sums/bot",
        "base_model": "tiny",
        "datasets": [{"name": "sums"}],
        "nr_epochs": 2,
        "learning_rate": 1e-3,
        "save_steps": 8,
    }
    record = felix.post("/training-jobs", json=asked).json()
    job = f"/training-jobs/{record['id']}"
    assert felix.get(f"{job}/download").status_code == 409

    with felix.stream("GET", f"{job}/logs?stream=true") as log:
        streamed = [line.removeprefix("data: ") for line in log.iter_lines() if line.startswith("data: ")]
    assert '"status": "complete"' in streamed[-1]
    assert len(streamed) - 1 == felix.get(f"{job}/logs").json()["total_logs"]

    done = felix.get(job).json()
    assert (done["status"], done["error_message"], done["progress_percent"]) == ("complete", None, 100.0)
    assert (done["artifact_ready"], done["current_epoch"], done["nr_epochs"]) == (True, 2, 2)
    losses = done["metrics"]
    assert 0 < losses["best_validation_loss"] <= losses["final_validation_loss"] < 6
    assert losses["final_training_loss"] > 0
    # A fifth of 60 rows is held out; 48 rows, 4 to a step, twice.
    assert service.job(record["id"]).step == 24
    checkpoints = felix.get(f"{job}/checkpoints").json()["checkpoints"]
    assert [(one["step"], one["is_final"]) for one in checkpoints][-1] == (24, True)
    assert sum(one["is_best"] for one in checkpoints) == 1
    assert felix.get("/trained-models").json()["models"][0]["job_id"] == record["id"]

    download = felix.get(f"{job}/download").json()
    assert download["file_name"] == "sums-bot-weights.zip"
    archive = httpx.get(download["download_url"], trust_env=False)
    assert archive.status_code == 200, archive.text
    assert int(archive.headers["content-length"]) == len(archive.content)
    zipfile.ZipFile(io.BytesIO(archive.content)).extractall(tmp_path / "weights")
    subprocess.run([sys.executable, "-c", LOADS, str(tmp_path / "weights")], check=True, timeout=300)
