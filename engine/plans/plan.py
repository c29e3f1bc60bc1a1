"""What a run needs of its device's memory: bytes by part and by phase, and the figures that all plans share.

The rule: a plan is arithmetic in milliseconds, with every part named; what a formula leaves out is corrected by the
peaks that runs reported, never by a hidden margin. Formulas follow what `engine.trainer` does; bytes throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

DeviceType = Literal["cuda", "mps", "cpu"]

# NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314): 4 bits a weight, 8 for each 64 weights, 32 for
# each 256 of those.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
ADAM = 8.0  # two moments in fp32
ADAM_8BIT = 2 * (1 + 4 / 256)  # two moments of 8 bits with an fp32 scale for each 256

# The head's product is made in chunks of so many logits, as in engine.trainer.cross_entropy: 4 bytes each, as many
# again for what is worked out of them.
CHUNK_LOGITS = {"cuda": 2**26, "mps": 2**26, "cpu": 2**24}
CHUNK_ROWS_AT_LEAST = 64
LOGIT_BYTES = 8

# What is there before the model comes: the driver's context and the libraries' work areas on a card; on the CPU the
# training libraries, the dataset and what a first evaluation leaves (measured).
CONTEXT = {"cuda": 450_000_000, "mps": 450_000_000, "cpu": 440_000_000}
# Holes between what comes and goes, as a share of it; weights come once and stay. torch's allocators for cards fill
# theirs again. glibc's does not: an aligned block finds no room where one of its size was freed, so a run's heap grows
# for its first steps by some 0.5 to 0.8 of what passed through the layers (SmolLM2-135M, 256 to 6,144 tokens, with and
# without recomputation).
HOLES = {"cuda": 0.06, "mps": 0.06, "cpu": 0.7}

CORRECTION_AT_MOST = 2.0  # and one over it at least: a stranger ratio is a fault of something else

# In the order in which they are shown: what stands, what comes and goes, what is around it.
STANDING = ("weights", "growth", "original", "adapters", "gradients", "optimizer")
PASSING = ("activations", "logits", "cache", "hidden states", "statistics", "retained")
PARTS = (*STANDING, *PASSING, "workspace", "fragmentation")

Parts: TypeAlias = "dict[str, int]"


@dataclass(frozen=True)
class Plan:
    """What a run needs, in bytes: `parts` of the phase that needs most, and the sum of each phase.

    `correction` is what runs of this `mode` on this device were seen to take, over what was planned; `runs` says from
    how many.
    """

    mode: str
    phase: str
    parts: Mapping[str, int]
    phases: Mapping[str, int]
    correction: float = 1.0
    runs: int = 0

    @property
    def planned(self) -> int:
        """The sum of the parts, before the correction."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """What the run is expected to take."""
        return round(self.planned * self.correction)

    def corrected(self, correction: float, runs: int) -> Plan:
        """Return the plan with what runs on this device taught, held within a factor of two."""
        bounded = min(max(correction, 1 / CORRECTION_AT_MOST), CORRECTION_AT_MOST)
        return replace(self, correction=bounded, runs=runs)

    def document(self) -> dict[str, Any]:
        """Return the plan as JSON holds it."""
        return {
            "mode": self.mode,
            "phase": self.phase,
            "parts": dict(self.parts),
            "phases": dict(self.phases),
            "planned": self.planned,
            "correction": round(self.correction, 4),
            "runs": self.runs,
            "needed": self.needed,
        }


def of_moments(mode: str, moments: Mapping[str, Sequence[Parts]]) -> Plan:
    """Return the plan of a run from the parts at each moment of each phase; parts that no moment has are left out."""
    peaks = {phase: max(found, key=lambda parts: sum(parts.values())) for phase, found in moments.items()}
    phases = {phase: sum(parts.values()) for phase, parts in peaks.items()}
    phase = max(phases, key=lambda name: phases[name])
    used = [name for name in PARTS if any(name in parts for found in moments.values() for parts in found)]
    return Plan(mode, phase, {name: peaks[phase].get(name, 0) for name in used}, phases)
