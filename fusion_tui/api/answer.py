"""What every answer of both dialects is made of: times as text, numbers that JSON has a word for.

The rule: an answer is a frozen model; what a row has and a dialect has no name for stays away.
"""

from __future__ import annotations

import math
from datetime import datetime, timezone
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def iso(seconds: float) -> str:
    """Return seconds since 1970 as ISO-8601 in UTC, with milliseconds and a Z."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{micros // 1000:03d}Z"


@lru_cache(maxsize=4096)  # a curve has many points to a second, and is asked for again
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, timezone.utc).isoformat()[:19]


def _time(value: Any) -> Any:
    return iso(value) if isinstance(value, int | float) else value


def _finite(value: Any) -> Any:
    """Return None for what JSON has no word for: a loss that ran away is stored as it was."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Timestamp = Annotated[str, BeforeValidator(_time), Field(json_schema_extra={"format": "date-time"})]
Measure = Annotated[float | None, BeforeValidator(_finite)]


class Answer(BaseModel):
    """Anything that either dialect answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")
