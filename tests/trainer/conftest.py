"""A tiny model, made once, and runs of the real loop on it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch

from engine import journal
from engine.jobs.hyperparams import HYPERPARAMS, FinetuneHyperparams
from engine.journal import JournalWriter, Record
from engine.order import CHECKPOINTS, JOURNAL, Order
from engine.trainer import finetune, models, optimizer
from engine.trainer.reporter import Reporter
from engine.trainer.run import Run, StopFlag
from tests import tiny


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two threads on a busy machine slow a tiny model many times over."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of two layers and a byte-level tokenizer."""
    return tiny.make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def _loaded_tokenizer(tiny_model: Path) -> Any:
    return models.load_tokenizer(tiny_model)


@pytest.fixture
def tokenizer(_loaded_tokenizer: Any) -> Any:
    """A tokenizer that the test may change."""
    return copy.deepcopy(_loaded_tokenizer)


class Interrupting(Reporter):
    """Reports as ever, and calls `then` when the point of step `at` has been told."""

    def __init__(self, writer: JournalWriter, at: int | None, then: Callable[[], None]) -> None:
        super().__init__(writer)
        self._at, self._then = at, then

    def points(self, points: list[dict[str, Any]]) -> None:
        """Report points."""
        super().points(points)
        if any(point["phase"] == "train" and point["step"] == self._at for point in points):
            self._then()


class Killed(BaseException):
    """Stands for a kill: nothing in the loop may catch it and save."""


BASES: dict[str, dict[str, Any]] = {
    "finetune": {
        "steps": 8,
        "lr": 5e-3,
        "seq_len": 96,
        "batch_size": 2,
        "grad_accum": 2,
        "lora_rank": 4,
        "lora_alpha": 8.0,
    },
    "train": {"cycles": 2, "steps_per_cycle": 4, "lr": 5e-3, "seq_len": 96},
    "contract": {"num_layers_to_contract": 2, "calibration_sequences": 20, "seq_len": 48},
}


@dataclass
class Bench:
    """One job's folder, in which attempts are made one after the other."""

    folder: Path
    model_path: Path
    rows: Path
    fence: int = 0

    def order(self, *, type: str = "finetune", **hyperparams: Any) -> Order:
        """Write down the next attempt."""
        self.fence += 1
        roots = tuple(str(self.folder / f"attempt-{n}" / CHECKPOINTS) for n in range(self.fence, 0, -1))
        asked = {**BASES[type], **hyperparams}
        if "epochs" in hyperparams:
            asked.pop("steps", None)
        settings = HYPERPARAMS[type].model_validate(asked)
        order = Order(
            job_id="job",
            fence=self.fence,
            type=type,
            device="cpu",
            hyperparams=settings.model_dump(),
            model_id="m",
            model_name="tiny",
            model_path=str(self.model_path),
            dataset_name="sums",
            dataset_path=str(self.rows),
            dataset_sha256="0" * 64,
            output_id="out-id",
            output_name="out",
            output_path=str(self.folder / "models" / "out-id"),
            checkpoint_roots=roots,
        )
        (self.folder / f"attempt-{self.fence}").mkdir(parents=True)
        (self.folder / "models").mkdir(exist_ok=True)
        return order

    def journal_path(self, fence: int | None = None) -> Path:
        """Return where an attempt, the newest by default, tells what it does."""
        return self.folder / f"attempt-{fence or self.fence}" / JOURNAL

    def make_run(self, order: Order, *, stop_at: int | None = None, die_at: int | None = None) -> Run:
        """Load model and data as a worker does. The run stops, or dies, after the given step."""
        settings = FinetuneHyperparams.model_validate(order.hyperparams)
        stop = StopFlag()

        def then() -> None:
            if die_at:
                raise Killed
            stop.requested = True

        reporter = Interrupting(JournalWriter(self.journal_path(), order.fence), stop_at or die_at, then)
        objective, _, corpus, _ = finetune.prepare(order, settings, reporter)
        return Run(
            objective=objective,
            optimizer=optimizer.make(objective.model, settings, objective.device),
            corpus=corpus,
            settings=finetune.settled(settings, corpus, reporter),
            roots=tuple(Path(root) for root in order.checkpoint_roots),
            keep_checkpoints=2,
            reporter=reporter,
            stop=stop,
        )

    def records(self, fence: int | None = None) -> list[Record]:
        """Return what an attempt, the newest by default, told."""
        return journal.read(self.journal_path(fence), 0).records

    def losses(self, fence: int | None = None) -> dict[int, tuple[float, float]]:
        """Return (loss, gradient norm) of each step that an attempt told."""
        points = [record.data for record in self.records(fence) if record.kind == "point"]
        return {p["step"]: (p["loss"], p["grad_norm"]) for p in points if p["phase"] == "train"}


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    return Bench(tmp_path / "job", tiny_model, tiny.make_rows(tmp_path / "sums.jsonl", 24))


@pytest.fixture
def make_bench(tmp_path: Path, tiny_model: Path) -> Callable[[str], Bench]:
    """Make several jobs on the same rows."""
    rows = tiny.make_rows(tmp_path / "sums.jsonl", 24)
    return lambda name: Bench(tmp_path / name, tiny_model, rows)


def write_rows(path: Path, *fields: dict[str, Any]) -> Path:
    """Write rows of any shape."""
    path.write_text("".join(json.dumps(row) + "\n" for row in fields))
    return path
