"""Every command and every line of Python in docs/api.md, run as it stands against a real server.

Only the address is another one, and curl is told to fail where a request is refused.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.paths import Home
from engine.service import Job, Service
from engine.settings import Settings
from fusion_tui.api.server import ApiServer
from tests import tiny, worker
from tests.conditions import eventually
from tests.docs.api_text import BLOCKS, ROOT, Block, chosen
from tests.supervised import working

pytestmark = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")

ADDRESS = "http://127.0.0.1:7878"
STRICT = 'set -euo pipefail\ncurl() { command curl --fail-with-body --max-time 60 "$@"; }\n'
# What a block about one job finds: it is that of the block before, where a user reads them in order.
THIS_JOB = "import os\nfrom client import call\njob = call('GET', f\"/jobs/{os.environ['JOB']}\")\n"


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """Serve the API; give its address."""
    api = ApiServer(service, "127.0.0.1", 0)
    api.start()
    try:
        yield api.url
    finally:
        api.stop()


def run(service: Service, url: str, folder: Path, command: list[str], script: str, **variables: str) -> str:
    """Run a script in a folder; return what it printed. A null alone on a line is a field that is not there."""
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ours = {"FUSION_HOME": str(service.home.root), "FUSION_CONFIG": str(folder / "none.toml"), "PATH": path}
    ours |= {"FUSION_URL": url, "FUSION_KEY": service.token(), "PYTHONPATH": str(ROOT / "examples")}
    done = subprocess.run(
        [*command, script.replace(ADDRESS, url)],
        cwd=folder,
        env={**os.environ, **ours, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "null" not in done.stdout.splitlines(), done.stdout
    return done.stdout


def shell(service: Service, url: str, folder: Path, blocks: list[Block], **variables: str) -> str:
    """Run blocks of commands as one session; before each, the line of docs/api.md that it stands at is printed."""
    told = "".join(f"echo 'docs/api.md line {block.line}'\n{block.text}" for block in blocks)
    return run(service, url, folder, ["bash", "-c"], STRICT + told, **variables)


def python(service: Service, url: str, folder: Path, script: str, **variables: str) -> str:
    """Run Python beside client.py."""
    return run(service, url, folder, [sys.executable, "-c"], script, **variables)


def completed(service: Service, *, steps: int) -> Job:
    """Fine-tune the tiny model through the queue."""
    job = queue(service, steps=steps)
    return eventually(lambda: found if (found := service.job(job.id)).state == "completed" else None, within=120)


def queue(service: Service, *, steps: int) -> Job:
    """Queue a fine-tune of the tiny model."""
    settings = {"steps": steps, "seq_len": 64, "lr": 1e-3, "save_steps": max(steps // 2, 1), "eval_steps": 2}
    request = {"type": "finetune", "idempotency_key": f"{steps}", "base_model_id": "tiny", "dataset_id": "few"}
    return service.submit({**request, "hyperparams": settings}).job


def test_every_block_says_what_it_is() -> None:
    known = {(language, needs) for language in ("sh", "python") for needs in ("", "finished", "running")}
    assert {(block.language, block.needs) for block in BLOCKS} - known == {("text", "")}
    assert all("curl" not in block.text for block in BLOCKS if block.language == "text")
    fences = (ROOT / "docs" / "api.md").read_text().count("```")
    assert fences == 2 * len(BLOCKS)


def test_the_commands_run_in_their_order(tmp_path: Path) -> None:
    service = Service(Home(tmp_path / "home"), config=Settings())
    with serving(service) as url:
        shell(service, url, tmp_path / "here", chosen("sh"))
        python(service, url, tmp_path / "here", "\n".join(block.text for block in chosen("python")))
    # What each language made: a job in each dialect, which it deleted, a chain, versions of a dataset, a key.
    assert sorted(job.name.partition("-")[0] for job in service.jobs()) == [
        "contract",
        "grow",
        "shrink",
        "train",
        "tune",
    ]
    versions = {(entry.name, entry.version) for entry in service.datasets() if entry.name != "starter"}
    assert versions == {("sums", 1), ("rows", 1), ("rows", 2)}
    keys = service.keys()
    assert [key.name for key in keys] == ["first key"]
    service.close()


def test_the_commands_about_a_job_that_runs_or_has_finished_run(tmp_path: Path) -> None:
    setup, here = chosen("sh")[0], tmp_path / "here"
    service = Service(Home(tmp_path / "home"), config=Settings())
    making = worker.begin(tiny.make_model, tmp_path / "tiny")  # where the libraries are loaded for the workers anyway
    making.join()
    service.add_model(str(tmp_path / "tiny"), "tiny")
    service.add_dataset(str(tiny.make_rows(tmp_path / "few.jsonl")), "few")
    with serving(service) as url:
        with working(service):
            job = completed(service, steps=4)
            long = queue(service, steps=100_000)
            eventually(lambda: service.job(long.id).step, what="a step")
            shell(service, url, here, [setup, *chosen("sh", "running")], JOB=long.id)
            eventually(lambda: service.job(long.id).state == "cancelled", what="its stop")
        assert service.checkpoints(long.id)
        told = shell(service, url, here, [setup, *chosen("sh", "finished")], JOB=job.id)
        script = THIS_JOB + "\n".join(block.text for block in chosen("python", "finished"))
        python(service, url, here, script, JOB=job.id)
    assert "event: end" in told
    model = service.model(job.output_model_id or "")
    weights = (Path(model.path) / "model.safetensors").read_bytes()
    for folder in ("model", "same-model"):
        assert (here / folder / "model.safetensors").read_bytes() == weights
    for name in ("weights.zip", f"{model.name}-weights.zip"):
        with zipfile.ZipFile(here / name) as zipped:
            assert zipped.read("model.safetensors") == weights
    started = [entry for entry in service.jobs() if entry.checkpoint_id]
    assert len(started) == 3
    service.close()
