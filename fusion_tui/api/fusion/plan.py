"""What dialect A answers to `POST /jobs/plan`: the memory that a request would need, in bytes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fusion_tui.api.answer import Answer
from fusion_tui.api.fusion.answers import StoredPlan


class Alternative(Answer):
    """Settings that would make the run fit."""

    changes: dict[str, Any]
    needed: int


class Holder(Answer):
    """A process that holds memory of the device."""

    pid: int
    name: str
    bytes: int


class MemoryPlan(StoredPlan):
    """The plan of a request, held against the device as it is now."""

    free: int
    verdict: Literal["fits", "tight", "waits", "too_large", "unknown"]
    settled: dict[str, Any] = Field(description="Settings that were left open and would not be the usual ones.")
    fits: bool = Field(description="Whether the run could start now.")
    summary: str
    alternatives: list[Alternative] = Field(description="The least harmful first.")
    holders: list[Holder]
