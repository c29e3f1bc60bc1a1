"""What the form holds, as a request and as the command that does the same.

The rule: names, defaults and limits of settings are read from the job type's own fields, never written here.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic.fields import FieldInfo

from engine.service import AnyModel, BaseModel, Dataset
from engine.specs import HYPERPARAMS
from fusion_tui import format as fmt

JOB_TYPE = "finetune"
FIELDS: Mapping[str, FieldInfo] = HYPERPARAMS[JOB_TYPE].model_fields
COMMON = ("steps", "lr", "seq_len", "batch_size", "lora_rank", "output_name")
ADVANCED = tuple(name for name in FIELDS if name not in COMMON)

_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}

Entry = TypeVar("Entry", AnyModel, Dataset)


def default_text(name: str) -> str:
    """Return a setting's default as typed into its field."""
    value = FIELDS[name].default
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


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

    def payload(self, key: str) -> dict[str, Any]:
        """Return the request, under an idempotency key."""
        source = _source(self.model) if self.model else {}
        return {
            "type": JOB_TYPE,
            "idempotency_key": key,
            **source,
            **({"dataset_id": self.dataset.id} if self.dataset else {}),
            "hyperparams": self.changed,
        }

    def command(self, model: str, dataset: str) -> str:
        """Return the command that submits the same."""
        words = ["fusion-tui", "submit", JOB_TYPE, "--model", model, "--dataset", dataset]
        for name, text in self.changed.items():
            words += ["--set", f"{name}={text}"]
        return shlex.join(words)


def _source(model: AnyModel) -> dict[str, str]:
    return {"base_model_id" if isinstance(model, BaseModel) else "source_model_id": model.id}
