"""`GET /health`: whether the server works. It needs no key."""

from __future__ import annotations

from fastapi import APIRouter

from fusion_tui.api.access import Engine
from fusion_tui.api.fusion import answers

router = APIRouter(tags=["server"])


@router.get("/health")
def health(service: Engine) -> answers.Health:
    """Say whether the server works. Needs no key."""
    return answers.Health.model_validate(service.health())
