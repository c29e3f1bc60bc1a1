"""Recommendations for entries of the catalogue, fitted into memory; and what to say of a learning rate far off.

The rule: advice never stands in the way. What cannot be read gives a rougher recommendation that says so, and a
request is only refused for its rate where the caller asked for care.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from engine.catalog import AnyModel, find_dataset, find_model
from engine.data import lengths
from engine.errors import EngineError, Fault, InvalidRequest, UnknownReference
from engine.jobs import specs
from engine.jobs.hyperparams import HYPERPARAMS, FinetuneHyperparams, LoopHyperparams
from engine.plans.planning import MemoryReport, remedy
from engine.plans.recommend import (
    FINETUNE,
    LEAST_ROWS,
    REFUSE_ABOVE,
    SWEPT,
    TRAIN,
    WARN_ABOVE,
    WARNING,
    WINDOW_ABOVE,
    WINDOW_BELOW,
    DataSize,
    ModelSize,
    Recommendation,
    Value,
    learning_rate,
    recommend,
    rows_per_step,
)
from store.catalog import Dataset
from store.library import Database

# JSON around the text included, so fewer characters of text than in `lengths`: they cancel roughly.
BYTES_PER_TOKEN = 4.0
# Settings that save memory and change neither the rows nor what learns; and how much is grown, which a card decides.
SAVING = {"gradient_checkpointing", "optimizer", "load_in_4bit", "growth_ratio"}
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value >= 16), None)


def model_size(entry: AnyModel) -> ModelSize:
    """Return the size of a catalogue model; where its config.json does not tell, an estimate from its parameters.

    More lenient than a memory plan's shape: the rate needs the hidden size alone, which every family states.
    """
    try:
        config = json.loads((Path(entry.path) / "config.json").read_text())
        # Models that also see or hear keep the language model's numbers one level down.
        config = config.get("text_config") or config
        hidden, positions = _first(config, _HIDDEN), _first(config, _POSITIONS)
    except (OSError, ValueError, AttributeError):
        hidden = positions = None
    estimate = ModelSize.of_params(max(entry.params, 1))
    if hidden is None:
        return replace(estimate, family=entry.family, positions=positions)
    return ModelSize(max(entry.params, 1), hidden, entry.family, positions)


def data_size(entry: Dataset, model_path: Path | None) -> DataSize:
    """Return the size of a catalogue dataset in tokens of the model in `model_path`."""
    measured = lengths.measure(Path(entry.path), model_path or Path())
    rows = max(entry.rows, 1)
    if measured is None:
        tokens = max(round(entry.bytes / BYTES_PER_TOKEN), 1)
        return DataSize(tokens, rows, origin=f"estimated at {BYTES_PER_TOKEN:g} bytes a token")
    origin = f"estimated from {len(measured.sample):,} of {rows:,} rows"
    return DataSize(max(round(measured.mean * rows), 1), rows, measured, origin)


@dataclass(frozen=True)
class Asked:
    """What a recommendation is asked for; entries are the catalogue's, plain numbers win over what they tell."""

    model: AnyModel | None = None
    dataset: Dataset | None = None
    params: int | None = None
    dataset_tokens: int | None = None
    dataset_bytes: int | None = None
    type: str = FINETUNE
    training_type: str = "lora"

    @classmethod
    def of(cls, db: Database, *, model: str | None = None, dataset: str | None = None, **numbers: Any) -> Asked:
        """Find the entries by id or name. Raises UnknownReference."""
        found_model = find_model(db, model) if model is not None else None
        found_dataset = find_dataset(db, dataset) if dataset is not None else None
        return cls(found_model, found_dataset, **numbers)

    def sizes(self) -> tuple[ModelSize, DataSize]:
        """Return the sizes of model and data. Raises InvalidRequest where nothing tells one of them."""
        faults = []
        if self.model is None and self.params is None:
            faults.append(Fault(("base_model_id",), "name a model, or give params", "missing"))
        if self.dataset is None and self.dataset_tokens is None and self.dataset_bytes is None:
            faults.append(Fault(("dataset_id",), "name a dataset, or give dataset_tokens or dataset_bytes", "missing"))
        if faults:
            raise InvalidRequest(faults)
        return self._model(), self._data()

    def _model(self) -> ModelSize:
        if self.model is None:
            return ModelSize.of_params(self.params or 1)
        size = model_size(self.model)
        return replace(size, params=self.params) if self.params else size

    def _data(self) -> DataSize:
        known = data_size(self.dataset, Path(self.model.path) if self.model else None) if self.dataset else None
        if self.dataset_tokens is None and self.dataset_bytes is None:
            assert known is not None  # checked in sizes()
            return known
        tokens = self.dataset_tokens or max(round((self.dataset_bytes or 1) / BYTES_PER_TOKEN), 1)
        origin = "as given" if self.dataset_tokens else f"estimated at {BYTES_PER_TOKEN:g} bytes a token"
        return replace(known, tokens=tokens, origin=origin) if known else DataSize(tokens, origin=origin)


@dataclass(frozen=True)
class Advice:
    """A recommendation with the memory report of a job that follows it, where there can be one."""

    made: Recommendation
    memory: MemoryReport | None = None


Planner = Callable[[Mapping[str, Any]], MemoryReport]


def advise(asked: Asked, plan: Planner) -> Advice:
    """Return a recommendation that the device can hold, where any can. Raises InvalidRequest.

    What does not fit gets a smaller forward pass first, which changes nothing of what is learned, then the least
    harmful other change.
    """
    model, data = asked.sizes()
    full = asked.training_type == "full"
    made = recommend(model, data, type=asked.type, full=full)
    report = _report(asked, made, plan)
    while _too_large(report) and made.number("batch_size") > 1:
        made = recommend(model, data, type=asked.type, full=full, micro_batch=made.number("batch_size") // 2)
        report = _report(asked, made, plan)
    if _too_large(report):
        made, report = _shrunk(asked, made, report, plan)
    return Advice(made, report)


def _too_large(report: MemoryReport | None) -> TypeGuard[MemoryReport]:
    """Say whether the device cannot hold the job even alone. What waits for another process will fit in time."""
    return report is not None and report.verdict == "too_large"


def _report(asked: Asked, made: Recommendation, plan: Planner) -> MemoryReport | None:
    """Return the memory report of a job with these values, or None where none can be made."""
    if asked.model is None:
        return None
    # Said outright: left out, it would be what fits, before anything milder was tried.
    grown = {"growth_ratio": HYPERPARAMS[TRAIN].model_fields["growth_ratio"].default} if made.type == TRAIN else {}
    try:
        return plan({"type": made.type, "base_model_id": asked.model.id, "hyperparams": grown | made.hyperparams})
    except EngineError:
        return None


def _shrunk(
    asked: Asked, made: Recommendation, report: MemoryReport, plan: Planner
) -> tuple[Recommendation, MemoryReport | None]:
    """Apply the first alternative that leaves rows and kind of training as they are; say so where there is none."""
    because = f"As recommended otherwise, the job {report.summary}"
    offers = (offer.changes for offer in report.alternatives if offer.changes.keys() <= SAVING)
    changes = next(offers, {})
    if not changes:
        return replace(made, notes=(*made.notes, f"{WARNING}{because}. {remedy(report)}.")), report
    added = {name: Value(value, None, None, "to fit into memory") for name, value in changes.items()}
    settings = " and ".join(f"{name} {str(value).lower()}" for name, value in changes.items())
    note = f"{settings}: {because[:1].lower()}{because[1:]}."
    made = replace(made, values=made.values | added, notes=(*made.notes, note))
    return made, _report(asked, made, plan)


@dataclass(frozen=True)
class RateWarning:
    """A learning rate well above the recommended one for its job. `refused`: so far that the sweep diverged."""

    lr: float
    recommended: float
    refused: bool

    @property
    def payload(self) -> dict[str, Any]:
        """What the job's history keeps."""
        return {"lr": self.lr, "recommended": self.recommended, "text": str(self)}

    def refusal(self) -> InvalidRequest:
        """Return the error for a caller who asked for care."""
        message = f"{self}. The loss is likely to run away: lower it, or insist (--force; in the app, submit again)"
        return InvalidRequest([Fault(("hyperparams", "lr"), message, "advice")])

    def __str__(self) -> str:
        low, high = self.recommended / WINDOW_BELOW, self.recommended * WINDOW_ABOVE
        return (
            f"lr {self.lr:g} is {self.lr / self.recommended:.1f} times the recommended {self.recommended:g}; "
            f"safe is {low:.1e} to {high:.1e}"
        )


def together(sizes: Sequence[DataSize]) -> DataSize:
    """Return the size of several datasets that are read as one; lengths are not known of more than one."""
    if len(sizes) == 1:
        return sizes[0]
    rows = [each.rows for each in sizes if each.rows is not None]
    return DataSize(
        sum(each.tokens for each in sizes),
        sum(rows) if len(rows) == len(sizes) else None,
        origin="; ".join(dict.fromkeys(each.origin for each in sizes)),
    )


def rate_warning(model: AnyModel, datasets: Sequence[Dataset], settings: LoopHyperparams) -> RateWarning | None:
    """Return what is to be said of a job's learning rate, or None where it is in order.

    Outside the sizes that the rate was measured on, only a rate beyond REFUSE_ABOVE is warned of and none refused: on
    the starter model (4.7 M) six times the extrapolated rate trained best and sixteen times diverged. No sweep tells
    where new blocks diverge, so of a train job none is refused either.
    """
    type = FINETUNE if isinstance(settings, FinetuneHyperparams) else TRAIN
    size, full = model_size(model), type == FINETUNE and not settings.frozen_base
    measured = SWEPT[0] <= size.params <= SWEPT[1]
    limit = WARN_ABOVE if measured else REFUSE_ABOVE
    if settings.lr <= limit * learning_rate(size, LEAST_ROWS, type=type, full=full):
        return None  # in order whatever the rows: they need not be looked at
    sequences = settings.batch_size * settings.grad_accum
    data = together([data_size(each, Path(model.path)) for each in datasets])
    rows = rows_per_step(data, sequences, settings.seq_len) if settings.packing else sequences
    rate = learning_rate(size, rows, type=type, full=full)
    if settings.lr <= limit * rate:
        return None
    refused = type == FINETUNE and measured and settings.lr > rate * REFUSE_ABOVE
    return RateWarning(settings.lr, rate, refused)


def of_request(db: Database, request: specs.JobRequest) -> RateWarning | None:
    """Return what is to be said of a request's learning rate; nothing where it trains on no dataset, or where its model
    or dataset is not known."""
    if not isinstance(request.hyperparams, LoopHyperparams):
        return None
    try:
        model = find_model(db, request.model_reference or "")
        datasets = [find_dataset(db, one) for one in (request.dataset_id or "", *request.more_dataset_ids)]
    except UnknownReference:
        return None
    return rate_warning(model, datasets, request.hyperparams)
