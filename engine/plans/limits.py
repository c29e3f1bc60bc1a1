"""What a model itself rules out: architectures that cannot be grown or contracted, and more than there is to take.

The rule: said when the job is submitted, in the words of a request; a config.json that cannot be read rules nothing
out, for the worker will tell.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import Fault, InvalidRequest
from engine.plans import contraction, growth, model_shape
from engine.plans.model_shape import Shape, ShapeUnknown

if TYPE_CHECKING:
    from engine.jobs.hyperparams import ContractHyperparams, Hyperparams

DONE_TO = {"train": "grown", "contract": "contracted"}
ARCHITECTURE = "architecture"  # the kind of such a fault


def settle(settings: Hyperparams, folder: Path, family: str) -> Hyperparams:
    """Return the settings of a job on the model in `folder`, with what follows from the model filled in.

    `family` is the catalogue's word for its architecture. Raises InvalidRequest for what the model rules out.
    """
    from engine.jobs.hyperparams import ContractHyperparams, TrainHyperparams

    if isinstance(settings, TrainHyperparams):
        _need_supported("train", "base_model_id", folder, family)
    if isinstance(settings, ContractHyperparams):
        _need_supported("contract", "source_model_id", folder, family)
        try:
            shape = model_shape.read(folder)
        except ShapeUnknown:
            return settings
        asked = settings.num_layers_to_contract if "num_layers_to_contract" in settings.model_fields_set else None
        touched = contraction.layers_touched(asked, shape.layers)
        settings = settings.model_copy(update={"num_layers_to_contract": touched})
        _need_even(settings, shape)
        _need_remains(settings, shape)
    return settings


def _architecture(folder: Path, family: str) -> str:
    """Return the architecture of the language model in `folder`, as its config.json or else the catalogue names it."""
    try:
        config: Any = json.loads((folder / "config.json").read_text())
        # Models that also see or hear keep the language model's own one level down.
        return str((config.get("text_config") or config)["model_type"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return family


def _need_supported(type: str, field: str, folder: Path, family: str) -> None:
    found = _architecture(folder, family)
    if found not in growth.SUPPORTED:
        message = (
            f"a model of the type '{found}' cannot be {DONE_TO[type]} yet; these can: {', '.join(growth.SUPPORTED)}"
        )
        raise InvalidRequest([Fault((field,), f"{message}. A finetune job adapts any model", ARCHITECTURE)])


def _need_even(settings: ContractHyperparams, shape: Shape) -> None:
    """Raise InvalidRequest where every layer is to be left as wide as the next, and they differ already."""
    if settings.layout == "uniform" and shape.uneven:
        message = "the layers of this model differ in width already, so it cannot be uniform: use targeted or depth"
        raise InvalidRequest([Fault(("hyperparams", "layout"), message)])


def _need_remains(settings: ContractHyperparams, shape: Shape) -> None:
    """Raise InvalidRequest where more would go than there is."""
    asked, ratio = settings.num_layers_to_contract, settings.contraction_ratio
    place, message = "contraction_ratio", ""
    if asked > shape.layers:
        place = "num_layers_to_contract"
        message = (
            f"the model has {shape.layers} layers, so {asked} cannot be contracted: ask for {shape.layers} or fewer"
        )
    elif settings.layout == "depth":
        gone = contraction.layers_removed(shape, ratio, asked)
        if gone >= shape.layers:
            message = (
                f"{ratio:g} of {asked} layers' neurons are as many weights as {gone} whole layers, and the model has "
                f"{shape.layers}: none would be left. Lower it, process fewer layers, or use layout uniform"
            )
    else:
        uniform = settings.layout == "uniform"
        width = contraction.uniform_width(shape, ratio, asked) if uniform else contraction.targeted_width(shape, ratio)
        if width < 1:
            message = f"of {shape.mlp} neurons a layer none would be left: lower it, or process fewer layers"
    if message:
        raise InvalidRequest([Fault(("hyperparams", place), message)])
