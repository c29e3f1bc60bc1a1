"""Dialect A's routes about API keys.

The rule: a secret is shown once, in the answer that makes it.
"""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from fusion_tui.api import errors
from fusion_tui.api.access import READ, SCHEMES, Engine
from fusion_tui.api.fusion import entries

router = APIRouter(tags=["server"], dependencies=SCHEMES, responses=errors.documented(401, 403, 421, 422, 503))


@router.get("/keys", dependencies=READ)
def list_keys(service: Engine) -> list[entries.KeyEntry]:
    """List the keys, without their secrets."""
    keys = service.keys()
    return [entries.KeyEntry.model_validate(asdict(key)) for key in keys]
