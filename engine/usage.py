"""What the runs of some days took: time on devices, tokens, and what that cost at the user's rate.

The rule: days are UTC days, today is the last, and each has its entry; time that crosses midnight is shared out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone

from store import catalog, jobs, states, usage
from store.library import Database

DAY_S = 86_400.0


@dataclass(frozen=True)
class Day:
    """One UTC day: minutes of workers on devices, tokens they told of, what the minutes cost, jobs submitted."""

    date: date
    gpu_minutes: float = 0.0
    tokens: int = 0
    cost_usd: float = 0.0
    jobs: int = 0


@dataclass(frozen=True)
class Usage:
    """Every day of a period, oldest first."""

    days: tuple[Day, ...]

    @property
    def gpu_minutes(self) -> float:
        """Minutes of all days."""
        return math.fsum(day.gpu_minutes for day in self.days)

    @property
    def tokens(self) -> int:
        """Tokens of all days."""
        return sum(day.tokens for day in self.days)

    @property
    def cost_usd(self) -> float:
        """Cost of all days."""
        return math.fsum(day.cost_usd for day in self.days)

    @property
    def jobs(self) -> int:
        """Jobs submitted on any of the days."""
        return sum(day.jobs for day in self.days)


@dataclass(frozen=True)
class Overview:
    """What there is and what a period took."""

    active_runs: int
    models: int
    datasets: int
    period: Usage


def of_days(db: Database, days: int, *, now: float, usd_per_gpu_hour: float) -> Usage:
    """Return what the last `days` days took, today among them; a run under way counts until now."""
    last = math.floor(now / DAY_S)
    first = last - days + 1
    seconds, tokens, submits = [0.0] * days, [0] * days, [0] * days
    since = first * DAY_S
    for span in usage.spans(db, since=since):
        end = min(span.ended if span.ended is not None else now, now)
        for day in range(max(math.floor(span.begun / DAY_S), first), math.floor(end / DAY_S) + 1):
            seconds[day - first] += max(min(end, (day + 1) * DAY_S) - max(span.begun, day * DAY_S), 0.0)
    for spent in usage.tokens(db, since=since):
        tokens[min(math.floor(spent.at / DAY_S), last) - first] += spent.tokens
    for at in usage.submitted(db, since=since):
        submits[min(math.floor(at / DAY_S), last) - first] += 1
    start = datetime.fromtimestamp(since, timezone.utc).date()
    made = (
        Day(start + timedelta(n), seconds[n] / 60, tokens[n], seconds[n] / 3600 * usd_per_gpu_hour, submits[n])
        for n in range(days)
    )
    return Usage(tuple(replace(day, cost_usd=round(day.cost_usd, 6)) for day in made))


def overview(db: Database, days: int, *, now: float, usd_per_gpu_hour: float) -> Overview:
    """Return how many runs are under way, how many models and dataset versions there are, and a period's usage."""
    counts = jobs.count(db)
    return Overview(
        active_runs=sum(counts.get(state, 0) for state in states.ACTIVE),
        models=len(catalog.models(db)),
        datasets=len(catalog.datasets(db)),
        period=of_days(db, days, now=now, usd_per_gpu_hour=usd_per_gpu_hour),
    )
