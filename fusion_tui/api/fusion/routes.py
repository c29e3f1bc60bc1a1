"""Every router of dialect A, mounted at `/` and again at `/api`."""

from __future__ import annotations

from fusion_tui.api.fusion import datasets, health, jobs, keys, models, recommend

ROUTERS = (health.router, jobs.router, models.router, datasets.router, recommend.router, keys.router)
