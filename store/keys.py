"""API keys: stored as SHA-256 of the secret, shown once.

Secrets are 32 random bytes, so a plain hash is enough: there is nothing to guess (no password stretching).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from store.db import all_rows, first_row, insert
from store.library import Database

SCOPES = ("train", "read", "datasets", "models", "billing")


@dataclass(frozen=True)
class Key:
    """A key without its secret; `prefix` is what a user recognises it by."""

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: float


def digest(secret: str) -> str:
    """Return what is stored in place of `secret`."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Mapping[str, Any]) -> Key:
    return Key(row["id"], row["name"], row["prefix"], tuple(json.loads(row["scopes"])), row["created_at"])


def add(db: Database, *, id: str, name: str, secret: str, scopes: tuple[str, ...], now: float) -> Key:
    """Store a key by its hash."""
    key = Key(id=id, name=name, prefix=secret[:10], scopes=scopes, created_at=now)
    insert(
        db,
        "keys",
        {
            "id": id,
            "name": name,
            "prefix": key.prefix,
            "secret_hash": digest(secret),
            "scopes": json.dumps(scopes),
            "created_at": now,
        },
    )
    return key


def authenticate(db: Database, secret: str) -> Key | None:
    """Return the live key with this secret. The lookup is by hash, so its time says nothing of the secret."""
    sql = "SELECT id, name, prefix, scopes, created_at FROM keys WHERE secret_hash = ? AND revoked_at IS NULL"
    row = first_row(db, sql, [digest(secret)])
    return _key(row) if row else None


def is_known(db: Database, secret: str) -> bool:
    """Say whether a key with this secret exists or ever did."""
    return first_row(db, "SELECT 1 FROM keys WHERE secret_hash = ?", [digest(secret)]) is not None


def listing(db: Database) -> list[Key]:
    """Return the live keys, oldest first."""
    sql = "SELECT id, name, prefix, scopes, created_at FROM keys WHERE revoked_at IS NULL ORDER BY created_at"
    return [_key(row) for row in all_rows(db, sql)]


def revoke(db: Database, key_id: str, *, now: float) -> bool:
    """End a key. Returns False when no live key has this id."""
    sql = "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
    return bool(db.conn.execute(sql, [now, key_id]).rowcount)
