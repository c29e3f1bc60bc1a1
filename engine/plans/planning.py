"""Memory plans for this machine: model, settings and device in, a verdict with its alternatives out.

The rule: a plan advises, and refuses only what cannot fit a device alone; a model that cannot be read has no plan and
is in nobody's way.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine import catalog, resources
from engine.errors import UnknownReference
from engine.plans import limits, memory, model_shape, offers
from engine.plans.memory import Plan
from engine.plans.model_shape import Shape
from engine.plans.offers import Alternative
from engine.resources import Device, Holder, size_text
from store import memory_peaks
from store.library import Database

if TYPE_CHECKING:
    from engine.jobs.hyperparams import Hyperparams

RUNS_REMEMBERED = 5
# New parameters for each old one, where the request leaves that open: the first of these that fits.
RATIOS = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
# Main memory gives way a little: caches are dropped and idle pages swapped. A card's does not.
CPU_SHORTAGE = 0.1

Verdict = Literal["fits", "tight", "waits", "too_large", "unknown"]


@dataclass(frozen=True)
class MemoryReport:
    """A plan held against a device: bytes in all and free now, what would fit, and who holds the rest.

    `alternatives` are those that fit now, or where the device is too small those that it could hold; `settled` are the
    settings that the request left open, as they would run.
    """

    plan: Plan
    device: str
    total: int
    free: int
    verdict: Verdict
    alternatives: tuple[Alternative, ...] = ()
    holders: tuple[Holder, ...] = ()
    settled: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Bytes that the run is expected to take."""
        return self.plan.needed

    @property
    def fits(self) -> bool:
        """Whether the run could start now."""
        return self.verdict not in ("waits", "too_large")

    def stored(self) -> dict[str, Any]:
        """Return what a job keeps of its plan."""
        return {**self.plan.document(), "device": self.device, "total": self.total}

    @property
    def summary(self) -> str:
        """One line for a person: needs 5.9 GB of 11.2 GB free: fits."""
        needed, free, total = map(size_text, (self.needed, self.free, self.total))
        if self.verdict == "unknown":
            return f"needs {needed}; {self.device} does not tell what it has"
        if self.verdict == "too_large":
            return f"needs {needed}, there are {total} ({self.device}): too large"
        if self.verdict == "waits":
            return f"needs {needed} of {free} free: waits for {self.waits_for}"
        return f"needs {needed} of {free} free: {self.verdict}"

    @property
    def waits_for(self) -> str:
        """The processes that hold the memory."""
        return ", ".join(map(str, self.holders)) or "what cannot be seen from here"

    @property
    def correction(self) -> str:
        """What runs on this device taught: corrected ×1.07 from 3 runs here; empty where none ran."""
        runs = self.plan.runs
        return f"corrected ×{self.plan.correction:.2f} from {runs} run{'s' * (runs != 1)} here" if runs else ""

    def document(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return {
            **self.plan.document(),
            "device": self.device,
            "total": self.total,
            "free": self.free,
            "verdict": self.verdict,
            "settled": dict(self.settled),
            "fits": self.fits,
            "summary": self.summary,
            "alternatives": [asdict(alternative) for alternative in self.alternatives],
            "holders": [asdict(holder) for holder in self.holders],
        }


def card(gigabytes: float) -> Device:
    """Return an NVIDIA card of this size, all of it free. Sold sizes are GiB, of which the driver keeps a part."""
    return Device("cuda:0", f"an NVIDIA card of {gigabytes:g} GB", 0, round(gigabytes * 1e9))


def fits_now(needed: int, device: Device) -> bool:
    """Say whether a run that needs so many bytes may start beside what is on the device now."""
    spare = 1 - CPU_SHORTAGE if device.type == "cpu" else 1.0
    return not device.memory_total or needed * spare <= device.memory_free


def correction(db: Database, device: str, mode: str) -> tuple[float, int]:
    """Return (median of measured over planned, number of runs) of the newest runs of a mode on a device."""
    ratios = memory_peaks.ratios(db, device, mode, newest=RUNS_REMEMBERED)
    return (statistics.median(ratios), len(ratios)) if ratios else (1.0, 0)


def needed_now(db: Database, plan: Mapping[str, Any], device: Device) -> int:
    """Return what a job with this stored plan needs on a device, by what runs have taught until now."""
    bare = Plan(plan["mode"], plan["phase"], plan["parts"], plan["phases"])
    return bare.corrected(*correction(db, device.label, bare.mode)).needed


def _planned(db: Database, shape: Shape, settings: Hyperparams, device: Device) -> Plan:
    """Return the plan of a run on a device, by what runs have taught."""
    bits = resources.multiplies_in_16_bits(device.type)
    bare = memory.plan(shape, settings, device.type, sixteen_bits=bits)
    return bare.corrected(*correction(db, device.label, bare.mode))


def fitted(db: Database, shape: Shape, settings: Hyperparams, device: Device) -> Hyperparams:
    """Return the settings with the growth that was left open: the most, up to 0.5, that fits what is free now.

    Where none does, the most that the device could hold alone; where it cannot hold even the least, 0.5, of which the
    plan then says what would.
    """
    from engine.jobs.hyperparams import TrainHyperparams

    if not isinstance(settings, TrainHyperparams) or "growth_ratio" in settings.model_fields_set:
        return settings
    tried = [settings.model_copy(update={"growth_ratio": ratio}) for ratio in RATIOS]
    verdicts = [_verdict(_planned(db, shape, one, device).needed, device) for one in tried]
    now = (one for one, verdict in zip(tried, verdicts, strict=True) if verdict not in ("waits", "too_large"))
    alone = (one for one, verdict in zip(tried, verdicts, strict=True) if verdict != "too_large")
    return next(now, next(alone, tried[0]))


def report(db: Database, shape: Shape, settings: Hyperparams, device: Device) -> MemoryReport:
    """Hold the plan of a run against a device as it is now."""
    plan = _planned(db, shape, settings, device)
    verdict = _verdict(plan.needed, device)
    others: Sequence[Alternative] = ()
    if verdict in ("waits", "too_large"):
        limit = device.memory_total if verdict == "too_large" else device.memory_free
        others = offers.alternatives(
            settings, limit, lambda changed: _planned(db, shape, changed, device), quantises=device.type != "mps"
        )
    holders = resources.holders(device) if verdict == "waits" else []
    total, free = device.memory_total, device.memory_free
    return MemoryReport(plan, device.label, total, free, verdict, tuple(others), tuple(holders))


def _verdict(needed: int, device: Device) -> Verdict:
    if not device.memory_total:
        return "unknown"
    if needed > device.memory_total:
        return "too_large"
    if needed <= device.memory_free:
        return "fits"
    return "tight" if fits_now(needed, device) else "waits"


def largest_device() -> Device:
    """Return the device with the most memory, of equal ones that with the most free. Raises EngineError."""
    return max(resources.devices(), key=lambda device: (device.memory_total, device.memory_free))


def of_request(db: Database, payload: Mapping[str, Any], *, card_gb: float | None = None) -> MemoryReport:
    """Return the report on a request as `submit` takes it; the key and the dataset may be left out.

    The model may also be a folder with no more than a config.json. `card_gb` plans for an NVIDIA card of that size in
    place of this machine's device. Raises InvalidRequest, UnknownReference; ShapeUnknown where there can be no plan.
    """
    from engine.jobs import specs

    values = {"idempotency_key": "plan", **payload}
    reference = str(values.get("base_model_id") or values.get("source_model_id") or "")
    folder = Path(os.path.expanduser(reference))
    # Not Path's own: a name too long for a path is no folder and no failure.
    named = bool(reference) and os.path.isfile(folder / "config.json")
    if named:
        # A path may be longer than a name can be.
        values = {key: value for key, value in values.items() if key != "source_model_id"}
        values["base_model_id"] = "folder"
    if values.get("dataset_id") is None and values.get("type") != "contract":
        values["dataset_id"] = catalog.STARTER
    request = specs.parse(values)
    if payload.get("dataset_id") is not None:
        for named_data in (str(payload["dataset_id"]), *request.more_dataset_ids):
            catalog.find_dataset(db, named_data)
    try:
        model = catalog.find_model(db, reference if named else request.model_reference or "")
        folder, family = Path(model.path), model.family
    except UnknownReference:
        if not named:
            raise
        family = ""
    device = largest_device() if card_gb is None else card(card_gb)
    settings = limits.settle(request.hyperparams, folder, family)
    shape = model_shape.read(folder)
    settings = fitted(db, shape, settings, device)
    settled = {
        name: value for name, value in settings.model_dump().items() if value != getattr(request.hyperparams, name)
    }
    return replace(report(db, shape, settings, device), settled=settled)


def remedy(found: MemoryReport) -> str:
    """Return what would fit, as a sentence."""
    offers = "; ".join(f"{alternative} ({size_text(alternative.needed)})" for alternative in found.alternatives)
    if offers:
        return f"{'These would fit' if found.verdict == 'too_large' else 'These fit now'}: {offers}"
    return "No setting makes it fit: use a smaller model"
