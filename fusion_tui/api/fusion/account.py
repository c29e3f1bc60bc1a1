"""What runs cost: `POST /pricing/estimate`, `GET /usage`, `GET /overview`.

The rule: everything is worked out from the local rows and the user's rate; nothing is kept, so what a deleted job took
is gone from it.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from engine.jobs.specs import REQUESTS
from engine.service import Overview as Counted
from engine.service import Usage as Used
from fusion_tui.api import body, errors
from fusion_tui.api.access import Engine, needs
from fusion_tui.api.answer import Answer

router = APIRouter(tags=["billing"], responses=errors.documented(401, 403, 421, 422, 503))

BILLING = [needs("billing")]
DAYS_AT_MOST = 366


class Price(Answer):
    """What a request would take here."""

    type: str
    tokens: int = Field(description="That would be processed; 0 where nothing tells.")
    gpu_hours: float | None = Field(description="By earlier runs; null where none was measured on this device.")
    usd_per_gpu_hour: float = Field(description="The user's own setting.")
    cost_usd: float | None
    basis: str = Field(description="What the hours come from, or why there are none.")


class Bucket(Answer):
    """One UTC day."""

    date: str = Field(json_schema_extra={"format": "date"})
    gpu_minutes: float
    tokens: int = Field(description="Of jobs that finished that day, and of unfinished ones that last told of it then.")
    cost_usd: float
    jobs: int = Field(description="Submitted that day.")


class Usage(Answer):
    """What the days of a period took, oldest first; today is the last."""

    period_days: int
    unit: str
    total_gpu_minutes: float
    total_tokens: int
    total_cost_usd: float
    total_jobs: int
    buckets: list[Bucket]

    @classmethod
    def of(cls, used: Used) -> Usage:
        """Translate what was counted."""
        return cls(
            period_days=len(used.days),
            unit="gpu_minutes",
            total_gpu_minutes=used.gpu_minutes,
            total_tokens=used.tokens,
            total_cost_usd=round(used.cost_usd, 6),
            total_jobs=used.jobs,
            buckets=[Bucket.model_validate(vars(day) | {"date": day.date.isoformat()}) for day in used.days],
        )


class Overview(Answer):
    """What there is, and what the period took."""

    active_runs: int = Field(description="Jobs with a worker.")
    models: int = Field(description="Made by jobs.")
    datasets: int = Field(description="Every version.")
    gpu_minutes_period: float
    tokens_period: int
    spend_usd_period: float
    period_days: int

    @classmethod
    def of(cls, counted: Counted) -> Overview:
        """Translate what was counted."""
        period = counted.period
        return cls(
            active_runs=counted.active_runs,
            models=counted.models,
            datasets=counted.datasets,
            gpu_minutes_period=period.gpu_minutes,
            tokens_period=period.tokens,
            spend_usd_period=round(period.cost_usd, 6),
            period_days=len(period.days),
        )


@router.post(
    "/pricing/estimate",
    dependencies=BILLING,
    responses=errors.documented(400, 408, 413, 415),
    openapi_extra=body.documented(*REQUESTS.values()),
)
def estimate_price(service: Engine, payload: body.JsonObject) -> Price:
    """Say what a job would take in hours and money, by how fast earlier jobs of its type ran here; submit nothing.

    The body is that of a job; its key may be left out.
    """
    found = service.estimate(payload)
    return Price.model_validate(vars(found) | {"cost_usd": found.cost_usd})


@router.get("/usage", dependencies=BILLING)
def get_usage(service: Engine, days: Annotated[int, Query(ge=1, le=DAYS_AT_MOST)] = 14) -> Usage:
    """Sum up the last days, in UTC: time that workers had on a device (one under way until now), tokens, cost, jobs.

    What a deleted job took is not in it.
    """
    return Usage.of(service.usage(days))


@router.get("/overview", dependencies=BILLING)
def get_overview(service: Engine, days: Annotated[int, Query(ge=1, le=DAYS_AT_MOST)] = 30) -> Overview:
    """Count what there is, and sum up the last days as `/usage` does."""
    return Overview.of(service.overview(days))
