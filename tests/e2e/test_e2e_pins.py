"""Pinning a checkpoint from the command line."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from engine import pins
from engine.paths import Home
from engine.service import Checkpoint, Service
from engine.settings import Settings
from fusion_tui.cli import main
from store import telemetry
from tests.e2e.conftest import Shell


def test_a_checkpoint_is_pinned_shown_and_let_go_from_the_command_line(tmp_path: Path) -> None:
    service = Service(Home(tmp_path / "home"), config=Settings())
    request = {"type": "finetune", "idempotency_key": "k", "base_model_id": "starter", "dataset_id": "starter"}
    job = service.submit({**request, "name": "mine", "hyperparams": {"steps": 30}}).job
    folder = service.home.attempt(job.id, 1) / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    with service.store.write() as db:
        row = Checkpoint("c", job.id, 10, 0.5, 2.0, None, 1e-4, str(folder), 10, "published", 1.0)
        telemetry.add_checkpoint(db, row)
    service.cancel(job.id)
    service.close()

    shell = Shell(tmp_path / "home", 1)
    shown = shell.run("checkpoints", "mine", "--pin", "10").stdout
    assert "kept" in shown.splitlines()[0]
    assert "pinned" in shown.splitlines()[1]
    assert pins.is_pinned(folder)
    assert "no checkpoint of step 11" in shell.run("checkpoints", "mine", "--pin", "11", code=1).stderr
    assert [entry["pinned"] for entry in shell.json("checkpoints", "mine", "--unpin", "10")] == [False]
    assert not pins.is_pinned(folder)
    assert "pinned ones too" in CliRunner().invoke(main, ["rm", "--help"]).output
