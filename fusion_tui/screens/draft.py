"""What the form holds, as a request and as the command that does the same.

The rule: names, defaults and limits of settings are read from the job type's own fields, never written here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic.fields import FieldInfo

from engine.jobs.hyperparams import HYPERPARAMS
from engine.service import AnyModel, BaseModel, Dataset
from fusion_tui import format as fmt

FINETUNE, CONTRACT = "finetune", "contract"
TYPES = tuple(HYPERPARAMS)
ABOUT = {
    "train": "New run: train grows a model and trains what is new.",
    FINETUNE: "New run: finetune adapts a model to your rows.",
    CONTRACT: "New run: contract makes a model smaller, without a dataset.",
}
COMMON: Mapping[str, tuple[str, ...]] = {
    "train": (
        *("turns", "cycles", "steps_per_cycle", "lr", "seq_len", "batch_size", "grad_accum"),
        *("growth_ratio", "growth_shape", "train_scope", "output_name"),
    ),
    FINETUNE: ("steps", "lr", "seq_len", "batch_size", "grad_accum", "training_type", "lora_rank", "output_name"),
    CONTRACT: (
        *("contraction_ratio", "num_layers_to_contract", "layout", "calibration_sequences", "seq_len"),
        *("heal_steps", "output_name"),
    ),
}
ADVANCED: Mapping[str, tuple[str, ...]] = {
    type: tuple(name for name in HYPERPARAMS[type].model_fields if name not in COMMON[type]) for type in TYPES
}

_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}

Entry = TypeVar("Entry", AnyModel, Dataset)


@dataclass(frozen=True)
class Setting:
    """A setting of a type of job, as the form shows it."""

    type: str
    name: str

    @property
    def field(self) -> FieldInfo:
        """Where it is defined."""
        return HYPERPARAMS[self.type].model_fields[self.name]

    @property
    def default(self) -> str:
        """Its default as typed into its field."""
        return typed_text(self.field.default)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of one that is one of a few words, else nothing."""
        annotation = self.field.annotation
        if annotation is bool:
            return ("false", "true")
        return tuple(get_args(annotation)) if get_origin(annotation) is Literal else ()

    @property
    def hint(self) -> str:
        """What it is, and its limits."""
        found = {
            sign: bound
            for part in self.field.metadata
            for sign in _SIGNS
            if (bound := getattr(part, sign, None)) is not None
        }
        limits = [
            f"{_SIGNS[sign]} {fmt.count(bound) if bound >= 1e4 else f'{bound:g}'}" for sign, bound in found.items()
        ]
        if found.keys() == {"ge", "le"}:
            limits = [" … ".join(limit.split()[1] for limit in limits)]
        return f"{self.field.description or ''} {', '.join(limits)}".strip()

    def value(self, text: str) -> Any:
        """Return a typed text as JSON holds it, unless the setting is a text or the text is no number."""
        kinds = {self.field.annotation, *get_args(self.field.annotation)}  # a number that may be left out, too
        if not kinds & {int, float, bool}:
            return text
        try:
            return json.loads(text)
        except ValueError:
            return text


def settings(type: str) -> list[Setting]:
    """Return every setting of a type of job, the common ones first."""
    return [Setting(type, name) for name in (*COMMON[type], *ADVANCED[type])]


def typed_text(value: Any) -> str:
    """Return a setting's value as typed into its field."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def reference(entry: Entry, entries: Sequence[Entry]) -> str:
    """Return the shortest text that means this entry: its name where it is the newest of that name, else its id."""
    newest = max((one for one in entries if one.name == entry.name), key=lambda one: one.version)
    return entry.name if newest.id == entry.id else entry.id[:8]


@dataclass(frozen=True)
class Draft:
    """The form's content. `values` holds the settings as typed."""

    type: str = FINETUNE
    model: AnyModel | None = None
    dataset: Dataset | None = None
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> dict[str, str]:
        """The settings that are neither empty nor the default."""
        typed = {name: text.strip() for name, text in self.values.items()}
        return {name: text for name, text in typed.items() if text and text != Setting(self.type, name).default}

    @property
    def takes_dataset(self) -> bool:
        """Whether jobs of this type learn from one."""
        return self.type != CONTRACT

    @property
    def named(self) -> bool:
        """Whether everything is chosen that the type needs."""
        return self.model is not None and (self.dataset is not None or not self.takes_dataset)

    @property
    def subject(self) -> tuple[str, str, str, str] | None:
        """What recommended settings depend on: type, model, dataset, kind of training; None where there are none."""
        if self.model is None or self.dataset is None or not self.takes_dataset:
            return None
        return self.type, self.model.id, self.dataset.id, self.values.get("training_type", "lora")

    def payload(self, key: str) -> dict[str, Any]:
        """Return the request, under an idempotency key."""
        source = {self._source: self.model.id} if self.model else {}
        data = {"dataset_id": self.dataset.id} if self.dataset and self.takes_dataset else {}
        return {"type": self.type, "idempotency_key": key, **source, **data, "hyperparams": self.changed}

    def document(self, model: str, dataset: str) -> dict[str, Any]:
        """Return the request as a file for `submit --file`: names for ids, numbers for texts, no key."""
        data = {"dataset_id": dataset} if self.takes_dataset else {}
        values = {name: Setting(self.type, name).value(text) for name, text in self.changed.items()}
        return {"type": self.type, self._source: model, **data, "hyperparams": values}

    def command(self, model: str, dataset: str) -> str:
        """Return the command that submits the same."""
        words = ["fusion-tui", "submit", self.type, "--model", model]
        words += ["--dataset", dataset] if self.takes_dataset else []
        for name, text in self.changed.items():
            words += ["--set", f"{name}={text}"]
        return shlex.join(words)

    @property
    def _source(self) -> str:
        return "base_model_id" if self.model is None or isinstance(self.model, BaseModel) else "source_model_id"
