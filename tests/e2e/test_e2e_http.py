"""The same job by curl: the key, the idempotency key, the Host check, the numbers of the same run."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.supervised import Supervised

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(url: str, *arguments: str) -> tuple[int, Any]:
    """Return (status, body) of a request made with curl."""
    command = ["curl", "-s", "--max-time", "60", "-w", "\n%{http_code}", *arguments, url]
    body, _, status = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("\n")
    return int(status), json.loads(body) if body else None


def test_a_fine_tune_by_curl_from_submit_to_result(supervised: Supervised) -> None:
    key = ["-H", f"Authorization: Bearer {supervised.service.token()}"]
    url = supervised.url
    request = {
        "type": "finetune",
        "idempotency_key": "by-curl",
        "base_model_id": supervised.service.model("tiny").id,
        "dataset_id": supervised.service.dataset("sums").id,
        "hyperparams": {"steps": 12, "seq_len": 64, "output_name": "by-curl"},
    }
    post = ["-X", "POST", "-H", "Content-Type: application/json", "-d", json.dumps(request)]

    assert curl(f"{url}/health")[1]["status"] == "ok"
    assert curl(f"{url}/jobs", *post)[0] == 401
    assert curl(f"{url}/jobs", *key, "-H", "Host: evil.example", *post)[0] == 421
    assert supervised.service.jobs() == []

    status, job = curl(f"{url}/jobs", *key, *post)
    assert status == 201
    status, again = curl(f"{url}/api/jobs", *key, *post)
    assert (status, again["id"]) == (200, job["id"])
    assert [known.id for known in supervised.service.jobs()] == [job["id"]]
    assert curl(f"{url}/jobs/{job['id']}/result", *key)[0] == 404

    supervised.until_finished(job["id"])
    assert curl(f"{url}/jobs/{job['id']}", *key)[1]["status"] == "completed"
    metrics = curl(f"{url}/jobs/{job['id']}/metrics?since_step=8", *key)[1]
    assert metrics["latest_step"] == 12
    assert sorted({point["step"] for point in metrics["points"]}) == [9, 10, 11, 12]
    result = curl(f"{url}/jobs/{job['id']}/result", *key)[1]
    assert result["ppl_final"] < result["ppl_baseline"]
    models = curl(f"{url}/models", *key)[1]
    assert [(model["name"], model["lineage"]["job_id"]) for model in models] == [("by-curl", job["id"])]
    assert curl(f"{url}/jobs/{job['id']}/cancel", *key, "-X", "POST")[0] == 409
