"""What is said of a form: whether it can be queued, what is wrong where, and what memory it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import Fault
from fusion_tui import format as fmt

if TYPE_CHECKING:
    from engine.plans.planning import MemoryReport

# Kinds of faults that are no field's: a memory plan's, and a rate that the recommendation is against.
MEMORY, ADVICE = "memory", "advice"
NO_FIELDS = (MEMORY, ADVICE)
# Where a fault's place in the request is shown in the form.
PLACES = {"base_model_id": "model", "source_model_id": "model", "dataset_id": "dataset"}


def place_of(fault: Fault) -> str:
    """Return the field that a fault is about, or nothing."""
    if fault.loc[:1] == ("hyperparams",) and len(fault.loc) > 1:
        return str(fault.loc[1])
    return PLACES.get(str(fault.loc[0]), "") if fault.loc else ""


@dataclass(frozen=True)
class Verdict:
    """What the service has against a draft, and what memory it takes; `unplanned` says why that is not known."""

    faults: tuple[Fault, ...] = ()
    memory: MemoryReport | None = None
    unplanned: str = ""

    @property
    def insistent(self) -> bool:
        """Whether advice alone is against it, which submitting again overrides."""
        return bool(self.faults) and all(fault.kind == ADVICE for fault in self.faults)

    @property
    def memory_line(self) -> str:
        """What memory it takes, with what was left open as it would run, and what would fit where it does not."""
        report = self.memory
        if report is None:
            return f"memory: {self.unplanned}" if self.unplanned else ""
        settled = ", ".join(f"{name} {value}" for name, value in report.settled.items())
        parts = [f"memory: {report.summary}{f' with {settled}' if settled else ''}", report.correction]
        if not report.fits:
            from engine.plans.planning import remedy

            parts.append(remedy(report))
        return ". ".join(filter(None, parts))

    def line(self, elsewhere: list[str]) -> str:
        """Whether it can be queued; `elsewhere` are the faults that no field shows."""
        if not self.faults:
            return "✓ can be queued"
        if all(fault.kind == MEMORY for fault in self.faults):
            return "✗ does not fit into memory"
        return f"✗ {fmt.clean(elsewhere[0])}" if elsewhere else f"✗ {fmt.plural(len(self.faults), 'field')} to mend"
