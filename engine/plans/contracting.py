"""The memory of a contract job: the model, its own text, one layer's statistics at a time; and healing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.plans import contraction, writing
from engine.plans.finetuning import Finetuning
from engine.plans.model_shape import Shape
from engine.plans.passes import Layer
from engine.plans.plan import (
    CHUNK_LOGITS,
    CHUNK_ROWS_AT_LEAST,
    CONTEXT,
    HOLES,
    LOGIT_BYTES,
    DeviceType,
    Parts,
    Plan,
    of_moments,
)

if TYPE_CHECKING:
    from engine.jobs.hyperparams import ContractHyperparams

# As in engine.trainer.contract.
BATCH = 8  # sequences at a time
JUDGED_TOKENS = 1024  # of a pack of the dataset that is reported on
# Of what is written, four fifths are kept, and the model is calibrated on four fifths of those.
CALIBRATION_SHARE = 0.8 * 0.8
# What goes in and what comes out of a layer, of the model as it is left and as it was.
STREAMS = 4
GRAM = 4  # bytes of a pair of neurons: their mean product, in fp32
# And in fp64: damped, its inverse, the work areas of both. Measured with 2,048 and 3,072 neurons: 29 to 34.
SURGERY = 4 * 8
OUTWARD = 2 * 4 + 3 * 8  # bytes of a weight of the down projection: as it is, what it is behind, its repair in fp64


@dataclass(frozen=True)
class Contracting:
    """What is there at each moment of a contract job."""

    shape: Shape
    settings: ContractHyperparams
    device: DeviceType
    sixteen_bits: bool

    @property
    def element(self) -> int:
        """Bytes of what is multiplied."""
        return 2 if self.sixteen_bits else 4

    @property
    def _streams(self) -> float:
        """Bytes of all sequences' hidden states around a layer."""
        tokens = CALIBRATION_SHARE * self.settings.calibration_sequences * self.settings.seq_len
        return STREAMS * self.element * tokens * self.shape.hidden

    def _parts(self, **bytes_of: float) -> Parts:
        standing = {"weights": float(self.element * self.shape.params), "workspace": float(CONTEXT[self.device])}
        found = standing | bytes_of
        if self.device != "cpu":
            passing = ("activations", "logits", "cache", "hidden_states", "statistics")
            found["fragmentation"] = HOLES[self.device] * sum(found.get(name, 0.0) for name in passing)
        return {name.replace("_", " "): round(size) for name, size in found.items()}

    def writing(self) -> Parts:
        """The model writes its own text."""
        count, length = self.settings.calibration_sequences, self.settings.seq_len
        return self._parts(**writing.bytes_of(self.shape, self.element, count, length))

    def measuring(self) -> Parts:
        """All sequences go through a layer, some at a time."""
        passing = float(BATCH * self.settings.seq_len * Layer(self.element).passing(self.shape))
        square = float(2 * GRAM * self.shape.mlp**2)
        return self._parts(weights=self._at_work, hidden_states=self._streams, statistics=square, activations=passing)

    def removing(self) -> Parts:
        """Neurons of one layer go, and the rest is fitted."""
        shape = self.shape
        statistics = float((GRAM + SURGERY) * shape.mlp**2 + OUTWARD * shape.mlp * shape.hidden)
        found = statistics + self._found
        if self.device != "cpu":
            return self._parts(weights=self._at_work, hidden_states=self._streams, statistics=found)
        return self._parts(hidden_states=self._streams, statistics=found, fragmentation=self._holes)

    @property
    def _at_work(self) -> float:
        """Bytes of the weights on the device while layers go one by one: on a card the others rest in main memory."""
        resting = 0 if self.device == "cpu" else self.shape.linear * (1 - 1 / self.shape.layers)
        return self.element * (self.shape.params - resting)

    @property
    def _found(self) -> float:
        """Bytes of every layer's repaired down projection, which is kept in main memory until the end."""
        return 4.0 * self.shape.layers * self.shape.mlp * self.shape.hidden if self.device == "cpu" else 0.0

    @property
    def _holes(self) -> float:
        """Bytes that narrower MLPs left behind of the old ones in the CPU's heap (SmolLM2-135M: as much as those)."""
        return 3 * self.element * self.shape.layers * self.shape.mlp * self.shape.hidden if self.device == "cpu" else 0

    def judging(self) -> Parts:
        """What the model can do is measured, with its head in chunks."""
        shape, tokens = self.shape, max(self.settings.seq_len, JUDGED_TOKENS)
        rows = min(tokens, max(CHUNK_ROWS_AT_LEAST, CHUNK_LOGITS[self.device] // shape.vocab))
        passing = tokens * Layer(self.element).passing(shape)
        logits = LOGIT_BYTES * (rows if shape.plain_head else tokens) * shape.vocab
        return self._parts(activations=float(passing), logits=float(logits))

    def healing(self) -> list[Parts]:
        """Adapters on what is left learn from the original, which stands beside it."""
        settings = self.settings
        left = contraction.contracted(
            self.shape, settings.contraction_ratio, settings.num_layers_to_contract, settings.layout
        )
        work = Finetuning(left, settings.healing, self.device, self.sixteen_bits)
        original = self.element * self.shape.params
        moments = (work.forward_done(), work.backward_begun(), work.backward_done())
        return [{**parts, "original": original} for parts in moments]

    def publishing(self) -> Parts:
        """What is left is put together in main memory, from the weights as stored, beside what was worked with."""
        if self.device != "cpu":
            return self._parts()
        # In 16 bits, and the file that it is read from.
        whole = 2 * 2.0 * self.shape.params
        return self._parts(original=whole, statistics=self._found, fragmentation=self._holes)


def mode(settings: ContractHyperparams) -> str:
    """Return the kind of run whose peaks are comparable."""
    return "contract/heal" if settings.heal_steps else "contract"


def plan(shape: Shape, settings: ContractHyperparams, device: DeviceType, *, sixteen_bits: bool) -> Plan:
    """Return the plan of a contract job on such a model."""
    work = Contracting(shape, settings, device, sixteen_bits)
    moments = {
        "calibration": [work.writing(), work.judging()],
        "pruning": [work.measuring(), work.removing()],
        "publishing": [work.publishing()],
    }
    if settings.heal_steps:
        moments["healing"] = work.healing()
    return of_moments(mode(settings), moments)
