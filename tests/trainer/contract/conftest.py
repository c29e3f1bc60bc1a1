"""Contract jobs on models small enough to be carried out whole, several times over."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import journal
from engine.jobs.hyperparams import ContractHyperparams
from engine.journal import JournalWriter, Record
from engine.order import CHECKPOINTS, JOURNAL, Order
from engine.trainer import models
from engine.trainer.contract import job
from engine.trainer.reporter import Reporter
from engine.trainer.run import StopFlag
from tests import tiny

LAYERS = 8


def make_deep(folder: Path) -> Path:
    """Write a Llama of eight layers that has something to say: at their first size weights hardly tell tokens apart."""
    model = models.load_model(tiny.make_model(folder, layers=LAYERS), torch.float32)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
        model.model.norm.weight.mul_(4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of eight layers."""
    return make_deep(tmp_path_factory.mktemp("models") / "deep")


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file of a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass
class Contraction:
    """One contract job's folder, in which attempts are made one after the other."""

    folder: Path
    model_path: Path
    settings: dict[str, Any]
    rows: Path | None = None
    fence: int = 0

    def order(self) -> Order:
        """Write down the next attempt."""
        self.fence += 1
        roots = tuple(str(self.folder / f"attempt-{n}" / CHECKPOINTS) for n in range(self.fence, 0, -1))
        small = {"calibration_sequences": 15, "seq_len": 32, "num_layers_to_contract": 2, "batch_size": 2}
        (self.folder / f"attempt-{self.fence}").mkdir(parents=True)
        (self.folder / "models").mkdir(exist_ok=True)
        return Order(
            job_id="job",
            fence=self.fence,
            type="contract",
            device="cpu",
            hyperparams=ContractHyperparams.model_validate({**small, **self.settings}).model_dump(),
            model_id="m",
            model_name="deep",
            model_path=str(self.model_path),
            dataset_name="sums" if self.rows else "",
            dataset_path=str(self.rows or ""),
            dataset_sha256="",
            output_id="out-id",
            output_name="out",
            output_path=str(self.output),
            checkpoint_roots=roots,
        )

    @property
    def output(self) -> Path:
        """Where the finished model lies."""
        return self.folder / "models" / "out-id"

    def attempt(self, fence: int | None = None) -> Path:
        """Return the folder of an attempt, the newest by default."""
        return self.folder / f"attempt-{fence or self.fence}"

    def carry_out(self, stop: StopFlag | None = None, reporter: type[Reporter] = Reporter) -> Contraction:
        """Do an attempt in this process."""
        order = self.order()
        job.run_job(order, reporter(JournalWriter(self.attempt() / JOURNAL, order.fence)), stop or StopFlag())
        return self

    def records(self, kind: str, fence: int | None = None) -> list[dict[str, Any]]:
        """Return what an attempt, the newest by default, told of a kind."""
        told: list[Record] = journal.read(self.attempt(fence) / JOURNAL, 0).records
        return [record.data for record in told if record.kind == kind]

    @property
    def result(self) -> dict[str, Any]:
        """The job's result."""
        (found,) = self.records("result")
        return found
