"""How much memory a job takes on its device, from the model's shape and the settings alone: one plan for each type.

The rule: who wants a plan asks here, whatever the type of job; what each type takes stands in a file of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.plans import contracting, finetuning, growing
from engine.plans.model_shape import Shape
from engine.plans.plan import CONTEXT, PARTS, DeviceType, Plan

if TYPE_CHECKING:
    from engine.jobs.hyperparams import Hyperparams

__all__ = ["CONTEXT", "PARTS", "DeviceType", "Plan", "plan"]


def plan(shape: Shape, settings: Hyperparams, device: DeviceType, *, sixteen_bits: bool) -> Plan:
    """Return the plan of a job on such a model; `sixteen_bits`: the device multiplies in bf16 or fp16."""
    # Brings pydantic, which an app that only looks does not need.
    from engine.jobs.hyperparams import ContractHyperparams, FinetuneHyperparams, TrainHyperparams

    if isinstance(settings, TrainHyperparams):
        return growing.plan(shape, settings, device, sixteen_bits=sixteen_bits)
    if isinstance(settings, ContractHyperparams):
        return contracting.plan(shape, settings, device, sixteen_bits=sixteen_bits)
    assert isinstance(settings, FinetuneHyperparams)
    return finetuning.plan(shape, settings, device, sixteen_bits=sixteen_bits)
