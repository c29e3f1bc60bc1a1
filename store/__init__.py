"""The job store: one SQLite file, and the only package that speaks SQL.

Every function here takes an open `Database`; the caller decides whether it stands in `Store.read()`
or inside one `Store.write()` transaction. Nothing here imports engine or fusion_tui.
"""

from store.db import Store
from store.errors import (
    NetworkFilesystem,
    NotFound,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreReadOnly,
)

__all__ = [
    "NetworkFilesystem",
    "NotFound",
    "Store",
    "StoreBusy",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
]
