"""What a request for a finetune leaves to the recipe: the learning rate, the length of a sequence, what saves memory.

The rule: what the request says stands; only what it leaves open is filled in, for the batch that it asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.catalog import AnyModel
from engine.data.lengths import CHARACTERS_PER_TOKEN, TOKENS_PER_MESSAGE
from engine.errors import EngineError
from engine.plans import advice, planning
from engine.plans.recommend import ROUND_TO, DataSize, ModelSize, learning_rate, recommend, rows_per_step
from store.catalog import Dataset
from store.library import Database

# Beside what saves memory and changes nothing else: a smaller pass, with as many more of them to a step.
_SAVING = advice.SAVING | {"batch_size", "grad_accum"}


def complete(
    db: Database, hyperparams: Mapping[str, Any], model: AnyModel, datasets: Sequence[Dataset]
) -> dict[str, Any]:
    """Return the settings of a finetune of `model` with those that were left open, as the device can hold it.

    Where it cannot hold the job with any saving, nothing is saved: the submit says what would fit.
    """
    size = advice.model_size(model)
    data = [advice.data_size(each, Path(model.path)) for each in datasets]
    settings = dict(hyperparams)
    settings.setdefault("seq_len", _seq_len(size, data, settings.get("system_prompt") or ""))
    settings.setdefault("lr", _rate(size, data, settings))
    return settings | _savings(db, settings, model)


def _seq_len(size: ModelSize, data: Sequence[DataSize], system_prompt: str) -> int:
    """Return the longest that is recommended for any of the datasets, with room for what is put before each row."""
    wanted = max(recommend(size, each).number("seq_len") for each in data)
    if system_prompt:
        before = len(system_prompt) / CHARACTERS_PER_TOKEN + TOKENS_PER_MESSAGE
        wanted = math.ceil((wanted + before) / ROUND_TO) * ROUND_TO
    return min(wanted, size.positions or wanted)


def _rate(size: ModelSize, data: Sequence[DataSize], settings: Mapping[str, Any]) -> float:
    sequences = settings.get("batch_size", 1) * settings.get("grad_accum", 1)
    rows = sequences
    if settings.get("packing", True):
        whole = replace(data[0], tokens=sum(one.tokens for one in data), rows=sum(one.rows or 0 for one in data))
        rows = rows_per_step(whole, sequences, settings["seq_len"])
    return learning_rate(size, rows, full=settings.get("training_type") == "full")


def _savings(db: Database, settings: Mapping[str, Any], model: AnyModel) -> dict[str, Any]:
    """Return the least harmful changes with which the largest device can hold the job; none where it can as it is."""
    try:
        report = planning.of_request(db, {"type": "finetune", "base_model_id": model.id, "hyperparams": dict(settings)})
    except EngineError:
        return {}  # there is no plan, or the submit says what is wrong
    if report.verdict != "too_large":
        return {}
    return next((offer.changes for offer in report.alternatives if offer.changes.keys() <= _SAVING), {})
