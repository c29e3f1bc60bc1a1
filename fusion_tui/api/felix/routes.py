"""Every router of dialect B, mounted at `/felix`; and what of it is mounted at `/` too."""

from __future__ import annotations

from fusion_tui.api.felix import datasets, jobs, models, planned
from fusion_tui.api.felix.dataset_answers import NewDatasetUpload, ProcessUpload
from fusion_tui.api.felix.requests import TrainingJobRequest

ROUTERS = (planned.router, jobs.router, models.router, datasets.router, planned.inference)
AT_ROOT = (planned.inference,)
# What these read from bodies, for the OpenAPI document.
BODIES = (TrainingJobRequest, NewDatasetUpload, ProcessUpload)
