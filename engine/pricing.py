"""What a request would take in hours and money, by how fast earlier runs were here.

The rule: measured or nothing: where no run of this type was measured on this device, it says so and gives no hours.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import catalog
from engine.errors import UnknownReference
from engine.jobs import specs
from engine.jobs.hyperparams import ContractHyperparams, LoopHyperparams
from engine.plans import advice, duration, planning
from engine.plans.recommend import DataSize
from store import usage
from store.library import Database
from store.usage import Run

RUNS_SEEN = 200  # newest ones of the type
RUNS_TAKEN = 5  # of these, as many as a median needs


@dataclass(frozen=True)
class Estimate:
    """Tokens to process; hours and cost where they can be told; `basis` says from what."""

    type: str
    tokens: int
    gpu_hours: float | None
    usd_per_gpu_hour: float
    basis: str

    @property
    def cost_usd(self) -> float | None:
        """The hours at the rate."""
        return None if self.gpu_hours is None else round(self.gpu_hours * self.usd_per_gpu_hour, 6)


def estimate(db: Database, payload: Mapping[str, Any], *, usd_per_gpu_hour: float) -> Estimate:
    """Return what a request as `submit` takes it would take; the key may be left out.

    Raises InvalidRequest, UnknownReference; EngineError where no device can be seen.
    """
    request = specs.parse({"idempotency_key": "estimate", **payload})
    model = catalog.find_model(db, request.model_reference or "")
    data = None
    if request.dataset_id is not None:
        entries = [catalog.find_dataset(db, one) for one in (request.dataset_id, *request.more_dataset_ids)]
        data = advice.together([advice.data_size(entry, Path(model.path)) for entry in entries])
        steps = duration.steps(request.hyperparams, entries, Path(model.path))
    else:
        steps = request.hyperparams.total_steps
    tokens = _tokens(request.hyperparams, data, steps)
    device = planning.largest_device().label
    known = [run for run in usage.runs(db, type=request.type, newest=RUNS_SEEN) if run.device == device]
    rate, basis = _rate(db, known, model.id, model.params)
    where = f"{request.type} jobs on {device}"
    hours = tokens / rate / 3600 if rate else None
    return Estimate(request.type, tokens, hours, usd_per_gpu_hour, f"{basis} {where}" if rate else f"no {where} yet")


def _tokens(settings: Any, data: DataSize | None, steps: int) -> int:
    """Return the tokens of so many steps: full sequences where rows are packed, else rows of the data's mean length."""
    if isinstance(settings, ContractHyperparams):
        calibration = settings.calibration_sequences * settings.seq_len
        return calibration + steps * settings.batch_size * settings.seq_len
    if not isinstance(settings, LoopHyperparams):
        return 0
    packed = getattr(settings, "packing", True) or data is None or not data.rows
    row = settings.seq_len if packed or data is None else min(data.tokens / (data.rows or 1), settings.seq_len)
    return round(steps * settings.batch_size * settings.grad_accum * row)


def _rate(db: Database, known: list[Run], model_id: str, params: int) -> tuple[float | None, str]:
    """Return tokens a second and where from: of this model's runs, else of other models', scaled by parameters."""
    own = [run.tokens / run.seconds for run in known if run.model_id == model_id][:RUNS_TAKEN]
    if own:
        return statistics.median(own), f"{len(own)} earlier run{'s' * (len(own) != 1)} of this model among"
    scaled: list[float] = []
    for run in known:
        try:
            size = catalog.find_model(db, run.model_id).params
        except UnknownReference:
            continue
        if size > 0 and params > 0 and len(scaled) < RUNS_TAKEN:
            scaled.append(run.tokens / run.seconds * size / params)
    if not scaled:
        return None, ""
    return statistics.median(scaled), f"{len(scaled)} of other models, scaled by their parameters, among"
