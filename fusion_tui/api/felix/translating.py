"""Dialect B's request in the words of the engine, and the engine's faults in the words of dialect B.

The rule: one table of names serves both directions, so that nobody reads of a field that he did not send.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.errors import Fault, InvalidRequest
from engine.service import NamedRequest
from fusion_tui.api.felix.requests import TrainingJobRequest

DECODER_EPOCHS = 10
# Field of the dialect: setting of a finetune job.
SETTINGS = {
    "training_type": "training_type",
    "nr_epochs": "epochs",
    "learning_rate": "lr",
    "batch_size": "batch_size",
    "lora_r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "validation_data_percentage": "val_fraction",
    "save_steps": "save_steps",
    "seed": "seed",
    "packing": "packing",
    "system_prompt": "system_prompt",
    "warmup_ratio": "warmup_ratio",
    "warmup_steps": "warmup_steps",
    "lr_scheduler_type": "lr_scheduler",
    "weight_decay": "weight_decay",
    "early_stopping_patience": "early_stopping_patience",
    "early_stopping_min_delta": "early_stopping_min_delta",
    "gradient_accumulation_steps": "grad_accum",
}
# What else the engine may find fault with, by the place in its request.
_PLACES: dict[tuple[str | int, ...], tuple[str | int, ...]] = {
    **{("hyperparams", ours): (theirs,) for theirs, ours in SETTINGS.items()},
    ("hyperparams", "steps"): ("nr_epochs",),
    ("hyperparams", "loss_on"): ("mask_history",),
    ("hyperparams", "val_split"): ("validation_data_percentage",),
    ("hyperparams", "output_name"): ("model_name",),
    ("hyperparams", "seq_len"): ("base_model",),
    ("hyperparams",): (),
    ("name",): ("model_name",),
    ("base_model_id",): ("base_model",),
    ("checkpoint_id",): ("base_model",),
    ("dataset_id",): ("datasets", 0),
}


def named(asked: TrainingJobRequest, *, allow_full_decoder: bool) -> NamedRequest:
    """Return what a request asks of the engine. Raises InvalidRequest for every weight of a decoder."""
    if asked.training_type == "full" and not allow_full_decoder:
        message = "decoders are trained with lora; the setting allow_full_decoder = true lifts this"
        raise InvalidRequest([Fault(("training_type",), message)])
    said = asked.model_dump(include=set(SETTINGS))
    hyperparams: dict[str, Any] = {ours: said[theirs] for theirs, ours in SETTINGS.items() if said[theirs] is not None}
    hyperparams.setdefault("epochs", DECODER_EPOCHS)
    hyperparams |= {"val_split": "last", "loss_on": "last_answer" if asked.mask_history else "answers"}
    return NamedRequest(
        digest=asked.digest(),
        model=asked.base_model,
        datasets=tuple((dataset.name, dataset.version) for dataset in asked.datasets),
        hyperparams=hyperparams,
        name=asked.model_name,
        project_id=asked.project_id,
    )


def faults(found: Iterable[Fault]) -> InvalidRequest:
    """Return the engine's faults at the places where the request has what they are about."""
    return InvalidRequest([Fault(_place(fault.loc), fault.message, fault.kind) for fault in found])


def _place(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    if loc[:1] == ("more_dataset_ids",):
        return ("datasets", int(loc[1]) + 1) if len(loc) > 1 else ("datasets",)
    return _PLACES.get(loc, loc)
