"""The last question before a job is queued: can this model and this machine carry it out, and with which settings?

The rule: what is left open in a request is settled here once, and stored; what cannot be is refused with the remedy.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.catalog import AnyModel
from engine.errors import EngineError, Fault, InvalidRequest
from engine.plans import limits, model_shape, planning
from store.library import Database

if TYPE_CHECKING:
    from engine.jobs.hyperparams import Hyperparams

log = logging.getLogger("fusion.planning")


@dataclass(frozen=True)
class Admitted:
    """The settings as they will run, and the memory plan to store with the job: None where none can be made."""

    hyperparams: dict[str, Any]
    plan: dict[str, Any] | None


def admit(db: Database, type: str, settings: Hyperparams, model: AnyModel) -> Admitted:
    """Return how a job of `type` on `model` would run; change nothing.

    A train job whose growth_ratio was left out gets the largest up to 0.5 that fits the largest device as it is now, or
    else alone, a contract job whose num_layers_to_contract was left out at most the model's. Raises InvalidRequest
    where the architecture cannot be grown or contracted, where more would go than the model has, and, with what would
    fit, where the largest device could not hold the job even alone.
    """
    folder = Path(model.path)
    settings = limits.settle(settings, folder, model.family)
    try:
        shape, device = model_shape.read(folder), planning.largest_device()
        settings = planning.fitted(db, shape, settings, device)
        found = planning.report(db, shape, settings, device)
    except InvalidRequest:
        raise
    except EngineError as error:
        log.info("no memory plan for the %s of %s: %s", type, model.name, error)
        return Admitted(settings.model_dump(), None)
    if found.verdict == "too_large":
        raise InvalidRequest([Fault(("hyperparams",), f"{found.summary}. {planning.remedy(found)}", "memory")])
    return Admitted(settings.model_dump(), found.stored())
