"""Data folders whose workers are stand-ins, for tests that start many: no model is made, no library loaded."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from engine.order import JOURNAL
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from store import attempts, catalog
from store.attempts import Attempt
from tests.store.entries import base_model, dataset

ROOT = Path(__file__).parents[2]


def install(folder: Path, **behaviour: Any) -> Path:
    """Write a stand-in's executable that takes the arguments of an interpreter, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pids").mkdir(exist_ok=True)
    script = folder / "python"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.crash import stand_in\n"
        f"stand_in.work(Path(sys.argv[-1]), Path({str(folder / 'pids')!r}), **{behaviour!r})\n"
    )
    script.chmod(0o700)
    return script


def open_service(root: Path, executable: Path, **settings: Any) -> Service:
    """Open a data folder whose model and dataset are rows alone, and whose workers are stand-ins."""
    fresh = not (root / "store.db").exists()
    service = Service(Home(root), config=Settings(trainer_python=str(executable), **settings))
    if fresh:
        with service.store.write() as db:
            catalog.add_base_model(db, base_model())
            catalog.add_dataset(db, dataset())
            db.conn.execute("UPDATE base_models SET path = ? WHERE name = 'tiny'", [str(ROOT)])
            db.conn.execute("UPDATE datasets SET path = ? WHERE name = 'rows'", [str(ROOT)])
    return service


def submit(service: Service, **settings: Any) -> str:
    """Queue a run; return its job's id."""
    request = {"type": "finetune", "idempotency_key": os.urandom(8).hex(), "base_model_id": "tiny"}
    return service.submit({**request, "dataset_id": "rows", "hyperparams": {"steps": 3, **settings}}).job.id


def spawned(executable: Path) -> list[int]:
    """Return the pids of every worker that was ever started."""
    return [int(note.name) for note in (executable.parent / "pids").iterdir()]


def steps_of(service: Service, job_id: str) -> list[int]:
    """Return the steps that the store knows of a job."""
    return [point.step for point in service.points(job_id) if point.phase == "train"]


def journal_lines(directory: Path) -> list[dict[str, Any]]:
    """Return an attempt's journal as it is written."""
    return [json.loads(line) for line in (directory / JOURNAL).read_text().splitlines()]


def history(service: Service, job_id: str) -> list[Attempt]:
    """Return a job's attempts, oldest first."""
    return attempts.of_job(service.store.read(), job_id)
