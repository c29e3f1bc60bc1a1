"""Every router of dialect A, mounted at `/` and again at `/api`."""

from __future__ import annotations

from fusion_tui.api.fusion import account, datasets, health, jobs, keys, metrics, models, recommend, stream, uploads

ROUTERS = (
    health.router,
    jobs.router,
    metrics.router,
    stream.router,
    models.router,
    uploads.router,
    datasets.router,
    recommend.router,
    keys.router,
    account.router,
)
