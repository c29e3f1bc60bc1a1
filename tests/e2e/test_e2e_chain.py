"""Grow, fine-tune, contract: three commands make one chain, which the supervisor carries out by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.running.supervisor import Supervisor
from engine.service import Service
from tests import tiny, worker
from tests.conditions import eventually
from tests.e2e.conftest import Shell

SETS: dict[str, dict[str, Any]] = {
    "train": {"cycles": 1, "steps_per_cycle": 2, "seq_len": 64, "growth_ratio": 0.5, "output_name": "grown"},
    "finetune": {"steps": 2, "seq_len": 64, "output_name": "tuned"},
    "contract": {"calibration_sequences": 8, "seq_len": 32, "contraction_ratio": 0.25, "output_name": "small"},
}


def chain(shell: Shell) -> list[dict[str, Any]]:
    """Queue the three runs and wait for the last; return them as they ended."""
    words = {
        kind: [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        for kind, settings in SETS.items()
    }
    data = ["--dataset", "sums"]
    shell.run("submit", "train", "--model", "tiny", *data, "--name", "grow", *words["train"])
    shell.run("submit", "finetune", "--model", "@grow", "--after", "grow", *data, "--name", "tune", *words["finetune"])
    shell.run("submit", "contract", "--model", "@tune", "--name", "shrink", *words["contract"], "--wait")
    return [shell.json("show", name) for name in ("grow", "tune", "shrink")]


def test_what_each_verb_makes_is_what_the_next_one_begins_with(service: Service) -> None:
    supervisor, made = Supervisor(service, launch=worker.launch), []
    for kind, before in (("train", "tiny"), ("finetune", "@train"), ("contract", "@finetune")):
        data = {} if kind == "contract" else {"dataset_id": "sums"}
        request = {"type": kind, "idempotency_key": kind, "name": kind, "base_model_id": before, **data}
        made.append(service.submit({**request, "hyperparams": SETS[kind]}).job.id)

    def all_ended() -> bool:
        supervisor.tick()
        now = [service.job(job_id) for job_id in made]
        assert [job.error for job in now if job.error] == []
        return all(job.finished for job in now)

    eventually(all_ended, within=120, what="the end of the chain")
    supervisor.close()
    grown, tuned, small = (service.model(name) for name in ("grown", "tuned", "small"))
    assert service.model("tiny").params < grown.params == tuned.params > small.params
    results = [service.result(job_id) or {} for job_id in made]
    assert [result["params_after"] for result in results] == [grown.params, tuned.params, small.params]
    assert results[0]["function_preservation"] <= 1e-4


@pytest.mark.slow
def test_grow_finetune_and_contract_run_as_one_chain_of_commands(
    shell: Shell, tiny_model: Path, tmp_path: Path
) -> None:
    shell.run("models", "add", str(tiny_model), "--name", "tiny")
    shell.run("datasets", "add", str(tiny.make_rows(tmp_path / "sums.jsonl")), "--name", "sums")
    grow, tune, shrink = chain(shell)
    assert [job["status"] for job in (grow, tune, shrink)] == ["completed"] * 3
    assert (tune["after"], shrink["after"]) == (grow["id"], tune["id"])
    assert tune["started_at"] >= grow["finished_at"]
    assert shrink["started_at"] >= tune["finished_at"]
    assert (tune["source_model_id"], shrink["source_model_id"]) == (grow["output_model_id"], tune["output_model_id"])
    entries = {entry["name"]: entry for entry in shell.json("models")}
    assert entries["tiny"]["params"] < entries["grown"]["params"] == entries["tuned"]["params"]
    assert entries["small"]["params"] < entries["tuned"]["params"]
    lineage = entries["small"]["lineage"]
    assert (lineage["job_id"], lineage["type"]) == (shrink["id"], "contract")
    assert [(one["name"], one["type"]) for one in lineage["parents"]] == [
        ("tuned", "finetune"),
        ("grown", "train"),
        ("tiny", None),
    ]
    assert "← tuned" in shell.run("models").stdout
    results = {name: shell.json("result", name) for name in ("grow", "tune", "shrink")}
    assert results["grow"]["function_preservation"] <= 1e-4
    assert results["grow"]["params_after"] == results["tune"]["params_before"] == entries["grown"]["params"]
    assert results["shrink"]["param_ratio"] == pytest.approx(entries["small"]["params"] / entries["tuned"]["params"])
    config = json.loads((shell.home / "models" / entries["small"]["id"] / "config.json").read_text())
    assert config["num_hidden_layers"] >= 2
