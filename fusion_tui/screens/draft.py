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

from engine.hyperparams import HYPERPARAMS
from engine.service import AnyModel, BaseModel, Dataset
from fusion_tui import format as fmt

JOB_TYPE = "finetune"
FIELDS: Mapping[str, FieldInfo] = HYPERPARAMS[JOB_TYPE].model_fields
COMMON = ("steps", "lr", "seq_len", "batch_size", "grad_accum", "training_type", "lora_rank", "output_name")
ADVANCED = tuple(name for name in FIELDS if name not in COMMON)

_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}

Entry = TypeVar("Entry", AnyModel, Dataset)


def default_text(name: str) -> str:
    """Return a setting's default as typed into its field."""
    return typed_text(FIELDS[name].default)


def choices(name: str) -> tuple[str, ...]:
    """Return the values of a setting that is one of a few words, else nothing."""
    annotation = FIELDS[name].annotation
    if annotation is bool:
        return ("false", "true")
    return tuple(get_args(annotation)) if get_origin(annotation) is Literal else ()


def hint(name: str) -> str:
    """Return what a setting is, and its limits."""
    words = FIELDS[name].description or ""
    found = {
        sign: bound
        for part in FIELDS[name].metadata
        for sign in _SIGNS
        if (bound := getattr(part, sign, None)) is not None
    }
    limits = [f"{_SIGNS[sign]} {fmt.count(bound) if bound >= 1e4 else f'{bound:g}'}" for sign, bound in found.items()]
    if found.keys() == {"ge", "le"}:
        limits = [" … ".join(limit.split()[1] for limit in limits)]
    return f"{words} {', '.join(limits)}".strip()


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

    model: AnyModel | None = None
    dataset: Dataset | None = None
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> dict[str, str]:
        """The settings that are neither empty nor the default."""
        typed = {name: text.strip() for name, text in self.values.items()}
        return {name: text for name, text in typed.items() if text and text != default_text(name)}

    @property
    def subject(self) -> tuple[str, str, str] | None:
        """What recommended settings depend on: model, dataset, kind of training; None while one is missing."""
        kind = self.values.get("training_type", "")
        return (self.model.id, self.dataset.id, kind) if self.model and self.dataset else None

    def payload(self, key: str) -> dict[str, Any]:
        """Return the request, under an idempotency key."""
        source = {_source(self.model): self.model.id} if self.model else {}
        return {
            "type": JOB_TYPE,
            "idempotency_key": key,
            **source,
            **({"dataset_id": self.dataset.id} if self.dataset else {}),
            "hyperparams": self.changed,
        }

    def document(self, model: str, dataset: str) -> dict[str, Any]:
        """Return the request as a file for `submit --file`: names for ids, numbers for texts, no key."""
        source = _source(self.model) if self.model else "base_model_id"
        settings = {name: _value(name, text) for name, text in self.changed.items()}
        return {"type": JOB_TYPE, source: model, "dataset_id": dataset, "hyperparams": settings}

    def command(self, model: str, dataset: str) -> str:
        """Return the command that submits the same."""
        words = ["fusion-tui", "submit", JOB_TYPE, "--model", model, "--dataset", dataset]
        for name, text in self.changed.items():
            words += ["--set", f"{name}={text}"]
        return shlex.join(words)


def _source(model: AnyModel) -> str:
    return "base_model_id" if isinstance(model, BaseModel) else "source_model_id"


def _value(name: str, text: str) -> Any:
    """Return a typed text as JSON holds it, unless the setting is a text or the text is no number."""
    if FIELDS[name].annotation not in (int, float, bool):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
