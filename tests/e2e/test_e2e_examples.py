"""The scripts of examples/, as a user runs them: beside a server whose queue trains real models."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

from engine.service import Service
from fusion_tui.api.server import ApiServer

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run(served: ApiServer, service: Service, folder: Path, script: str, *arguments: str, code: int = 0) -> str:
    """Run an example in a folder of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        env={**os.environ, "FUSION_URL": served.url, "FUSION_KEY": service.token()},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_loop_of_dialect_a_trains_and_tells_every_step_once(
    served: ApiServer, service: Service, tmp_path: Path
) -> None:
    told = run(served, service, tmp_path, "fusion_train.py", "--model", "tiny", "--dataset", "sums", "--steps", "4")
    (job,) = service.jobs()
    assert (job.type, job.state, job.step) == ("train", "completed", 8)
    points = service.points(job.id)
    assert f"{len(points)} points; perplexity" in told
    assert "parameters more, output changed by 0.0e+00" in told
    assert all(told.count(f"  | {line.text}\n") == 1 for line in service.logs(job.id) if len(line.text) > 40)


def test_the_loop_of_dialect_b_uploads_trains_and_downloads(
    served: ApiServer, service: Service, tmp_path: Path
) -> None:
    told = run(served, service, tmp_path, "felix_finetune.py", "--base-model", "tiny")
    (job,) = service.jobs()
    assert (job.type, job.state) == ("finetune", "completed")
    assert "dataset example-rows 1: ready" in told
    model = Path(service.model(job.output_model_id or "").path)
    with zipfile.ZipFile(tmp_path / "weights.zip") as zipped:
        names = {name.rpartition("/")[2]: name for name in zipped.namelist()}
        assert zipped.read(names["model.safetensors"]) == (model / "model.safetensors").read_bytes()
        assert "config.json" in names


def test_the_nightly_queue_ranks_six_runs_and_finds_them_again(
    served: ApiServer, service: Service, tmp_path: Path
) -> None:
    asked = ("nightly_queue.py", "--model", "tiny", "--dataset", "sums", "--steps", "3", "--night", "n1")
    told = run(served, service, tmp_path, *asked)
    jobs = service.jobs()
    assert len(jobs) == 6
    assert {job.state for job in jobs} == {"completed"}
    best = min(jobs, key=lambda job: (service.result(job.id) or {})["ppl_final"])
    ranked = [line for line in told.splitlines() if line.startswith("n1 lr")]
    assert len(ranked) == 6
    assert ranked[0].startswith(best.name)
    assert run(served, service, tmp_path, *asked).splitlines()[-6:] == ranked
    assert len(service.jobs()) == 6


def test_an_example_without_a_server_says_how_to_start_one(service: Service, tmp_path: Path) -> None:
    nowhere = ApiServer(service, "127.0.0.1", 9)  # the port that discards: nothing listens there
    told = run(nowhere, service, tmp_path, "nightly_queue.py", code=1)
    assert "Start one with: fusion-tui serve" in told


def of_example(program: str, url: str = "http://127.0.0.1:9") -> str:
    """Return what a program that imports from examples/ prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FUSION_URL": url, "FUSION_KEY": "k", "PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.stdout + done.stderr


def test_a_server_that_says_nothing_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        told = of_example("import client; client.TIMEOUT_S = 0.2; client.call('GET', '/jobs')", url)
    assert told.startswith(f"GET /jobs: the server at {url} sent nothing for 0.2 s.")
    assert "Traceback" not in told


def test_the_log_goes_on_when_the_server_has_dropped_its_oldest_lines() -> None:
    # 2,000 lines are kept, whatever comes; the second time, all that was seen is gone.
    program = """
from felix_finetune import newer
for first in (2, 9000):
    kept = [{"id": str(number)} for number in range(first, first + 2000)]
    print(len(newer(kept, "1999")), newer(kept, "1999")[0]["id"])
"""
    assert of_example(program).split() == ["2", "2000", "2000", "9000"]
