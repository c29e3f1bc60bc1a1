"""Makes a store and a journal as one version of this project writes them, for the tests that open old ones.

It is run by the code of that version, which git keeps; the result is checked in and never made anew: a version that
has shipped does not change. Needs the development environment; the same revision gives the same rows.

    python -m tools.make_fixture REVISION tests/store/fixtures
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

# How a job comes to each state; those beyond "queued" were claimed once.
WAYS = {
    "queued": (),
    "provisioning": ("provisioning",),
    "staging": ("provisioning", "staging"),
    "running": ("provisioning", "staging", "running"),
    "checkpointing": ("provisioning", "staging", "running", "checkpointing"),
    "uploading": ("provisioning", "staging", "running", "uploading"),
    "preempted": ("provisioning", "staging", "running", "preempted"),
    "completed": ("provisioning", "staging", "running", "uploading", "completed"),
    "failed": ("provisioning", "failed"),
    "cancelled": ("provisioning", "staging", "running", "cancelled"),
}
ENDED = {"preempted": "lost", "completed": "completed", "failed": "failed", "cancelled": "cancelled"}
# What only later schemas can hold, by the schema that brought it.
LATER = {
    2: (
        'UPDATE jobs SET plan = \'{"device": "cpu", "mode": "m", "planned": 7, "needed": 8}\' WHERE step > 0',
        "UPDATE metrics SET data_s = 0.01, forward_s = 0.02, save_s = 0.5",
        "INSERT INTO memory_peaks SELECT id, 'cpu', 'm', 7, 9, 30.0 FROM jobs WHERE state = 'completed'",
    ),
    3: (
        "UPDATE attempts SET heard_at = 1030.0, exit_code = -9 WHERE outcome = 'lost'",
        "UPDATE checkpoints SET pinned = 1 WHERE job_id LIKE '%cancelled'",
    ),
    4: (
        "UPDATE jobs SET after_id = (SELECT id FROM jobs WHERE state = 'completed') WHERE state = 'queued'",
        "UPDATE jobs SET done = 0.25, total_steps = 0, type = 'contract', dataset_id = NULL WHERE state = 'staging'",
    ),
    5: (
        "UPDATE jobs SET project_id = 'p', more_dataset_ids = '[\"data-2\"]' WHERE state = 'running'",
        "UPDATE jobs SET checkpoint_id = (SELECT max(id) FROM checkpoints), save_requested = 1 WHERE state = 'running'",
        "INSERT INTO uploads VALUES ('up-1', 'rows.jsonl', 'text/plain', 'failed', 9, 'row 2', 'sent', 1, NULL, 1, 2)",
    ),
}
ROOT = "/fixture"  # stands for the data folder in the paths of the rows


def known(kind: type, **values: Any) -> Any:
    """Return a dataclass with those of `values` that this version's has."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def point(step: int, phase: str = "train") -> dict[str, Any]:
    """Return a telemetry point as a worker tells it."""
    fields = {"loss": 3.0 / step, "lr": 1e-4, "grad_norm": 0.5, "tokens": 100 * step, "epoch": step / 50}
    return {"step": step, "phase": phase, "ts": 1000.0 + step, "cycle": 0, "throughput": 900.0, "step_s": 0.1, **fields}


def fill(folder: Path) -> int:
    """Make the store and the running job's journal in `folder`; return the schema's number."""
    from store import Store, catalog, keys, schema

    store = Store(folder / "store.db")
    base = {"family": "llama", "params": 7, "precision": "bf16", "created_at": 1.0}
    with store.write() as db:
        model = catalog.BaseModel(id="base-1", name="tiny", version=0, path=f"{ROOT}/tiny", source="test", **base)
        catalog.add_base_model(db, model)
        for name in ("rows", "rows", "other"):
            count = db.conn.execute("SELECT count(*) FROM datasets").fetchone()[0]
            values = {"format": "text", "rows": 3, "shard_count": 1, "bytes": 9, "sha256": "0" * 64, "source": "test"}
            more = {"path": f"{ROOT}/rows", "status": "ready", "created_at": 1.0, "facts": {"shapes": ["text"]}}
            catalog.add_dataset(db, known(catalog.Dataset, id=f"data-{count}", name=name, version=0, **values, **more))
        keys.add(db, id="key-1", name="first key", secret="fus_" + "s" * 43, scopes=("read", "train"), now=1.0)
        db.table("settings").insert({"key": "theme", "value": "dark"})
    for number, (state, way) in enumerate(WAYS.items()):
        job(store, folder, f"job-{number}-{state}", state, way)
    take_in(store, folder)
    with store.write() as db:
        db.conn.execute("UPDATE attempts SET directory = replace(directory, ?, ?)", [str(folder), ROOT])
        for added, statements in LATER.items():
            for statement in statements if added <= len(schema.MIGRATIONS) else ():
                db.conn.execute(statement)
    store.close()
    return len(schema.MIGRATIONS)


def job(store: Any, folder: Path, job_id: str, state: str, way: tuple[str, ...]) -> None:
    """Add a job that has reached `state`, with all that such a job has."""
    from store import attempts, catalog, jobs, telemetry

    with store.write() as db:
        entry: Mapping[str, Any] = {
            "id": job_id,
            "type": "finetune",
            "name": f"a run that is {state}",
            "idempotency_key": f"key of {job_id}",
            "payload_hash": "0" * 64,
            "hyperparams": {"steps": 50, "output_name": "mine"},
            "base_model_id": "base-1",
            "source_model_id": None,
            "dataset_id": "data-1",
            "tags": ["a", "b"],
            "notes": "für später",
            "total_steps": 50,
            "now": 10.0,
        }
        jobs.insert(db, **entry)
        for to in way:
            claim = {"new_fence": 1} if to == "provisioning" else {}
            assert jobs.transition(db, job_id, to, fence=jobs.get(db, job_id).fence, now=20.0, **claim)
            if claim:
                directory = folder / "runs" / job_id / "attempt-1"
                directory.mkdir(parents=True)
                place = {"device": "cpu", "directory": str(directory), "start_step": 0, "now": 20.0}
                attempts.begin(db, job_id, 1, **place)
                attempts.update(db, job_id, 1, boot_id="boot", pid=4242, start_ticks=7, gate_opened=1)
        if len(way) > 2:
            values = [telemetry.Point(**point(step)) for step in range(1, 21)]
            telemetry.add_points(db, job_id, 1, [telemetry.Point(**point(20, "eval")), *values])
            telemetry.add_log_lines(db, job_id, [(1000.0 + n, "train", f"line {n}") for n in range(5)])
            checkpoint = {"epoch": 0.4, "loss": 0.2, "eval_loss": 0.3, "lr": 1e-4, "bytes": 10, "state": "published"}
            place = {"path": f"{ROOT}/runs/{job_id}/20", "created_at": 1020.0}
            row = known(telemetry.Checkpoint, id=f"{job_id}-20", job_id=job_id, step=20, **checkpoint, **place)
            telemetry.add_checkpoint(db, row)
            jobs.update(db, job_id, step=20, last_checkpoint_step=20)
        if state == "completed":
            telemetry.set_result(db, job_id, {"loss_final": 0.2, "gpu_seconds": 5.0}, now=30.0)
            base = {"family": "llama", "params": 7, "precision": "bf16", "base_model_id": "base-1", "job_id": job_id}
            model = catalog.Model(
                id="made-1", name="mine", version=0, path="/m", status="ready", created_at=3.0, **base
            )
            catalog.add_model(db, model)
            jobs.update(db, job_id, output_model_id="made-1", finished_at=30.0)
        if state in ENDED:
            db.conn.execute("UPDATE attempts SET outcome = ?, ended_at = 30 WHERE job_id = ?", [ENDED[state], job_id])


def take_in(store: Any, folder: Path) -> None:
    """Write the running job's journal, of which three lines were not taken into the store yet."""
    from engine.journal import JournalWriter
    from store import attempts

    try:
        from engine.running.ingest import ingest
    except ImportError:  # where it was up to schema 5
        from engine.ingest import ingest  # type: ignore[import-not-found, no-redef]

    job_id = next(name for name in os.listdir(folder / "runs") if name.endswith("running"))
    attempt = attempts.get(store.read(), job_id, 1)
    writer = JournalWriter(Path(attempt.directory) / "journal.jsonl", 1, clock=lambda: 1030.0)
    writer.append("state", {"to": "running", "activity": "training"})
    writer.append_all([("point", point(step)) for step in range(21, 31)])
    assert ingest(store, attempt) == 11
    writer.append_all([("point", point(step)) for step in (31, 32)])
    writer.append("end", {"outcome": "preempted", "error": None, "cause": None})
    writer.close()


def make(out: Path) -> None:
    """Fill a folder and pack it, below `out`, under its schema's number."""
    with tempfile.TemporaryDirectory() as folder:
        number = fill(Path(folder))
        target = out / f"schema-{number}"
        target.mkdir(parents=True, exist_ok=True)
        (journal,) = Path(folder).rglob("journal.jsonl")
        for source in (Path(folder) / "store.db", journal):
            # Without a time within, so that the same content is the same file.
            (target / f"{source.name}.gz").write_bytes(gzip.compress(source.read_bytes(), mtime=0))


def main() -> None:
    """Fetch the revision's code from git and let it make its own fixture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("revision")
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    archive = subprocess.run(
        ["git", "archive", asked.revision, "store", "engine"],  # noqa: S607
        capture_output=True,
        check=True,
    ).stdout
    with tempfile.TemporaryDirectory() as code:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(code, filter="data")
        script = "import sys; from pathlib import Path; import make_fixture; make_fixture.make(Path(sys.argv[1]))"
        environment = {**os.environ, "PYTHONPATH": f"{code}{os.pathsep}{Path(__file__).parent}"}
        command = [sys.executable, "-c", script, str(asked.out.absolute())]
        subprocess.run(command, env=environment, cwd=code, check=True)


if __name__ == "__main__":
    main()
