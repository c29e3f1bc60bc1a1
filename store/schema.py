"""The tables, as numbered migrations.

The rule: a migration that has shipped is never edited; a change is a new one at the end of the list.
`PRAGMA user_version` holds the number of migrations applied. Times are seconds since 1970 (REAL).
"""

from __future__ import annotations

from store.errors import StoreError
from store.library import Database

FIRST = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    secret_hash TEXT NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    created_at REAL NOT NULL,
    revoked_at REAL
);

CREATE TABLE base_models (
    id TEXT PRIMARY KEY,
    family TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    params INTEGER NOT NULL,
    precision TEXT NOT NULL,
    path TEXT NOT NULL,
    source TEXT NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (name, version)
);

CREATE TABLE datasets (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    format TEXT NOT NULL,
    rows INTEGER NOT NULL,
    shard_count INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    path TEXT NOT NULL,
    source TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (name, version)
);

CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    fence INTEGER NOT NULL DEFAULT 0,
    retries INTEGER NOT NULL DEFAULT 0,
    idempotency_key TEXT NOT NULL UNIQUE,
    payload_hash TEXT NOT NULL,
    hyperparams TEXT NOT NULL,
    base_model_id TEXT,
    source_model_id TEXT,
    dataset_id TEXT,
    output_model_id TEXT,
    tags TEXT NOT NULL DEFAULT '[]',
    notes TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0,
    total_steps INTEGER NOT NULL,
    last_checkpoint_step INTEGER NOT NULL DEFAULT 0,
    activity TEXT NOT NULL DEFAULT '',
    eta_s REAL,
    stop_requested INTEGER NOT NULL DEFAULT 0,
    hold TEXT,
    not_before REAL NOT NULL DEFAULT 0,
    error TEXT,
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL
);
CREATE INDEX jobs_by_state ON jobs (state, seq);

CREATE TABLE attempts (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    fence INTEGER NOT NULL,
    device TEXT NOT NULL,
    directory TEXT NOT NULL,
    boot_id TEXT,
    pid INTEGER,
    start_ticks INTEGER,
    gate_opened INTEGER NOT NULL DEFAULT 0,
    journal_offset INTEGER NOT NULL DEFAULT 0,
    journal_seq INTEGER NOT NULL DEFAULT 0,
    start_step INTEGER NOT NULL DEFAULT 0,
    stop_signalled_at REAL,
    outcome TEXT,
    detail TEXT,
    started_at REAL NOT NULL,
    ended_at REAL,
    PRIMARY KEY (job_id, fence)
);
CREATE INDEX attempts_open ON attempts (ended_at);

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    ts REAL NOT NULL,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL
);
CREATE INDEX events_by_job ON events (job_id, id);

CREATE TABLE metrics (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    step INTEGER NOT NULL,
    phase TEXT NOT NULL,
    ts REAL NOT NULL,
    fence INTEGER NOT NULL,
    cycle INTEGER NOT NULL,
    loss REAL,
    lr REAL,
    grad_norm REAL,
    throughput REAL,
    vram_gb REAL,
    tokens INTEGER,
    epoch REAL,
    step_s REAL,
    PRIMARY KEY (job_id, step, phase)
) WITHOUT ROWID;

CREATE TABLE log_lines (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    ts REAL NOT NULL,
    stream TEXT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (job_id, seq)
) WITHOUT ROWID;

CREATE TABLE results (
    job_id TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    body TEXT NOT NULL,
    created_at REAL NOT NULL
);

CREATE TABLE checkpoints (
    id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    step INTEGER NOT NULL,
    epoch REAL NOT NULL,
    loss REAL,
    eval_loss REAL,
    lr REAL,
    path TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    state TEXT NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (job_id, step)
);

CREATE TABLE models (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    family TEXT NOT NULL,
    params INTEGER NOT NULL,
    precision TEXT NOT NULL,
    base_model_id TEXT NOT NULL,
    job_id TEXT,
    path TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (name, version)
);

CREATE TABLE deployments (
    id TEXT PRIMARY KEY,
    model_id TEXT NOT NULL REFERENCES models (id),
    state TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '{}',
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
);
"""

# The split of a step's time; memory plans beside what was measured; what an import counted.
SECOND = """
ALTER TABLE metrics ADD COLUMN data_s REAL;
ALTER TABLE metrics ADD COLUMN forward_s REAL;
ALTER TABLE metrics ADD COLUMN backward_s REAL;
ALTER TABLE metrics ADD COLUMN optimizer_s REAL;
ALTER TABLE metrics ADD COLUMN save_s REAL;

ALTER TABLE jobs ADD COLUMN plan TEXT;

ALTER TABLE datasets ADD COLUMN facts TEXT NOT NULL DEFAULT '{}';

CREATE TABLE memory_peaks (
    job_id TEXT NOT NULL PRIMARY KEY,
    device TEXT NOT NULL,
    mode TEXT NOT NULL,
    planned INTEGER NOT NULL,
    measured INTEGER NOT NULL,
    created_at REAL NOT NULL
);
CREATE INDEX memory_peaks_by_device ON memory_peaks (device, mode, created_at);
"""

# When a worker was last heard of, and how its process ended; checkpoints that are kept for good.
THIRD = """
ALTER TABLE attempts ADD COLUMN heard_at REAL;
ALTER TABLE attempts ADD COLUMN exit_code INTEGER;

ALTER TABLE checkpoints ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
"""

# The job that a job starts after; how much of its work a worker says is done, where steps do not tell.
FOURTH = """
ALTER TABLE jobs ADD COLUMN after_id TEXT;
ALTER TABLE jobs ADD COLUMN done REAL;
"""

# What the second dialect says of a job; asking a worker to save, and a run to go once it has stopped; files sent here.
FIFTH = """
ALTER TABLE jobs ADD COLUMN project_id TEXT;
ALTER TABLE jobs ADD COLUMN more_dataset_ids TEXT NOT NULL DEFAULT '[]';
ALTER TABLE jobs ADD COLUMN checkpoint_id TEXT;
ALTER TABLE jobs ADD COLUMN save_requested INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN delete_requested INTEGER NOT NULL DEFAULT 0;

CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    filename TEXT NOT NULL,
    content_type TEXT NOT NULL,
    state TEXT NOT NULL,
    bytes INTEGER NOT NULL DEFAULT 0,
    detail TEXT NOT NULL DEFAULT '',
    dataset_name TEXT,
    dataset_version INTEGER,
    dataset_type TEXT,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    UNIQUE (dataset_name, dataset_version)
);
"""

MIGRATIONS: tuple[str, ...] = (FIRST, SECOND, THIRD, FOURTH, FIFTH)


def applied(db: Database) -> int:
    """Return how many migrations a store has had; 0 for one that was just made.

    Raises StoreError when the file was made by a later version.
    """
    number = int(db.execute("PRAGMA user_version").fetchone()[0])
    if number > len(MIGRATIONS):
        raise StoreError(
            f"This job store was made by a later version (schema {number}, this one knows {len(MIGRATIONS)}). "
            "Upgrade fusion-tui, or point FUSION_HOME at another folder."
        )
    return number


def migrate(db: Database) -> None:
    """Bring `db` up to date; call it inside one write transaction. Raises StoreError as `applied` does."""
    before = applied(db)
    for number, script in enumerate(MIGRATIONS[before:], start=before + 1):
        # Not executescript(): that would commit the transaction this stands in.
        for statement in script.split(";\n"):
            if statement.strip():
                db.conn.execute(statement)
        db.conn.execute(f"PRAGMA user_version={number}")
