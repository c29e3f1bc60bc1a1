"""What the OpenAPI document says beside the routes: what the API is, what its tags are, bodies by example.

The rule: an example is a request that is taken as it stands, where the ids and names in it exist.
"""

from __future__ import annotations

from typing import Any

from fusion_tui.api.guard import OPEN_PATHS, SIGNED

DESCRIPTION = """Train, grow and shrink language models on this machine: one table of jobs, in two dialects.

Dialect A lies at `/` and again at `/api`, dialect B at `/felix`; both see the same jobs, models and datasets. Every
request needs a key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; `fusion-tui token` prints the first one.
Errors are `{"detail": …}`, times ISO-8601 in UTC, ids UUIDs."""

TAGS = [
    {"name": "jobs", "description": "Submit runs, follow them, stop them, start them again."},
    {"name": "models", "description": "Imported models, and those that jobs made."},
    {"name": "datasets", "description": "Rows to train on, in immutable versions; uploads."},
    {"name": "training", "description": "Settings to start from."},
    {"name": "billing", "description": "What runs took, and what one would take, at your own rate."},
    {"name": "keys", "description": "Who may do what."},
    {"name": "server", "description": "Whether it works."},
    {"name": "felix: training jobs", "description": "Dialect B: create, list, follow, stop, delete, download."},
    {"name": "felix: datasets", "description": "Dialect B: upload, validate, list, look into, download, delete."},
    {"name": "felix: models", "description": "Dialect B: models to start from, and trained ones."},
    {"name": "felix: not yet", "description": "Dialect B: known here, and not part of this version."},
]

_ID = "3f2b8c1e-5d64-4c0a-9d0b-1c2d3e4f5a6b"

# Of bodies whose models do not bring their own.
EXAMPLES: dict[str, dict[str, Any]] = {
    "TrainRequest": {
        "type": "train",
        "idempotency_key": "grow-2024-10-04",
        "base_model_id": "starter",
        "dataset_id": "starter",
        "hyperparams": {"turns": 1, "cycles": 6, "steps_per_cycle": 1000, "lr": 1e-4, "seq_len": 256},
    },
    "FinetuneRequest": {
        "type": "finetune",
        "idempotency_key": "support-2024-10-04",
        "base_model_id": "starter",
        "dataset_id": "starter",
        "hyperparams": {"steps": 2000, "lora_rank": 32, "output_name": "support"},
    },
    "ContractRequest": {
        "type": "contract",
        "idempotency_key": "shrink-2024-10-04",
        "source_model_id": "starter",
        "hyperparams": {"contraction_ratio": 0.5, "num_layers_to_contract": 8},
    },
    "RecommendRequest": {"base_model_id": "starter", "dataset_id": "starter", "type": "finetune"},
    "NewDataset": {"name": "tickets", "path": "/home/me/tickets.jsonl"},
    "NewUpload": {"filename": "tickets.jsonl", "content_type": "application/jsonl"},
    "JobEdit": {"name": "second try", "tags": ["night"], "notes": "With a lower learning rate."},
    "NewDatasetUpload": {"dataset_name": "tickets", "dataset_type": "decoder", "filename": "tickets.jsonl"},
    "ProcessUpload": {"dataset_id": _ID},
}


# How the guard takes a key: either will do.
KEYS = {
    "Bearer": {"type": "http", "scheme": "bearer"},
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def complete(document: dict[str, Any]) -> None:
    """Add the examples of bodies that have none, and the key to every operation that the guard asks one for."""
    parts = document["components"]
    for name, example in EXAMPLES.items():
        if name in parts["schemas"]:
            parts["schemas"][name].setdefault("examples", [example])
    parts["securitySchemes"] = KEYS
    for path, operations in document["paths"].items():
        if path not in OPEN_PATHS and not path.startswith(SIGNED):
            for operation in operations.values():
                operation["security"] = [{name: []} for name in KEYS]
