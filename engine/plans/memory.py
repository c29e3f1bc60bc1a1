"""How much memory a fine-tune takes on its device, from the model's shape and the settings alone.

The rule: a plan is arithmetic in milliseconds, with every part named; what a formula leaves out is corrected by the
peaks that runs reported, never by a hidden margin. Formulas follow what `engine.trainer` does; bytes throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from engine.plans.model_shape import Shape

if TYPE_CHECKING:
    from engine.hyperparams import FinetuneHyperparams

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
# training libraries, the dataset and what a first evaluation leaves (measured; peft with what it imports on top).
CONTEXT = {"cuda": 450_000_000, "mps": 450_000_000, "cpu": 440_000_000}
PEFT = 60_000_000
# Holes between what comes and goes, as a share of it; weights come once and stay. torch's allocators for cards fill
# theirs again. glibc's does not: an aligned block finds no room where one of its size was freed, so a run's heap grows
# for its first steps by some 0.5 to 0.8 of what passed through the layers (SmolLM2-135M, 256 to 6,144 tokens, with and
# without recomputation).
HOLES = {"cuda": 0.06, "mps": 0.06, "cpu": 0.7}

CORRECTION_AT_MOST = 2.0  # and one over it at least: a stranger ratio is a fault of something else
SEQ_LEN_AT_LEAST = 256  # of the plans that are offered

PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "workspace", "fragmentation")


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


def mode(settings: FinetuneHyperparams) -> str:
    """Return the kind of run whose peaks are comparable: full, lora or qlora, and what is recomputed."""
    kind = "qlora" if settings.load_in_4bit else settings.training_type
    return f"{kind}/{settings.gradient_checkpointing}"


def plan(shape: Shape, settings: FinetuneHyperparams, device: DeviceType, *, sixteen_bits: bool) -> Plan:
    """Return the plan of a fine-tune of such a model; `sixteen_bits`: the device multiplies in bf16 or fp16."""
    work = Moments(shape, settings, device, sixteen_bits)
    moments = {
        "loading": [work.loading()],
        "training": [work.forward_done(), work.backward_begun(), work.backward_done()],
        "evaluation": [work.evaluation()],
        "publishing": [work.publishing()],
    }
    peaks = {phase: max(found, key=lambda parts: sum(parts.values())) for phase, found in moments.items()}
    phases = {phase: sum(parts.values()) for phase, parts in peaks.items()}
    phase = max(phases, key=lambda name: phases[name])
    return Plan(mode(settings), phase, {name: peaks[phase][name] for name in PARTS}, phases)


@dataclass(frozen=True)
class Moments:
    """One run's arithmetic: what is there at each moment that may be the peak, by part."""

    shape: Shape
    settings: FinetuneHyperparams
    device: DeviceType
    sixteen_bits: bool

    @property
    def _lora(self) -> bool:
        return self.settings.training_type == "lora"

    @property
    def _autocast(self) -> bool:
        """Whether weights held in fp32 are multiplied in 16 bits."""
        return self.sixteen_bits and not self._lora

    @property
    def _element(self) -> int:
        """Bytes of what is multiplied."""
        return 2 if self.sixteen_bits else 4

    @property
    def _learning(self) -> int:
        return self.shape.adapter(self.settings.lora_rank) if self._lora else self.shape.params

    @property
    def _weights(self) -> float:
        """Bytes of the model: what learns is held in fp32, what is frozen as it is multiplied or in 4 bits."""
        shape = self.shape
        if not self._lora:
            return 4 * shape.params
        if self.settings.load_in_4bit:
            return NF4 * shape.linear + self._element * (shape.params - shape.linear)
        return self._element * shape.params

    @property
    def _optimizer(self) -> float:
        if self.settings.optimizer == "adamw":
            return ADAM * self._learning
        # Paged state gives way: under pressure all of it moves to main memory.
        paged = self.settings.optimizer == "paged_adamw_8bit" and self.device == "cuda"
        return 0.0 if paged else ADAM_8BIT * self._learning

    @property
    def _tokens(self) -> int:
        return self.settings.batch_size * self.settings.seq_len

    def _layer(self) -> int:
        """Bytes that one layer keeps of one token for the backward pass, as autograd was seen to keep them.

        Each norm keeps its input, in fp32 where it works so, and where its gain learns also what that is multiplied
        by; the linear maps keep what goes in, which autocast writes anew for each of them; attention keeps query, key
        and value, its output, and that put together; the MLP keeps every step of its width, of a fused one under
        adapters the first two alone; an adapter keeps its narrow middle.
        """
        shape, element, lora = self.shape, self._element, self._lora
        norm = 4 + (0 if lora else 4) if shape.rms else element
        hidden = shape.norms * shape.hidden * norm
        # One matrix for query, key and value is kept whole by the value that is a part of it.
        again = shape.query + shape.key_value if shape.fused or self._autocast else 0
        inputs = (sum(size == shape.hidden for size, _ in shape.linears[:-2]) if self._autocast else 1) + 1
        attention = 3 * shape.query + 2 * shape.key_value + again
        if shape.query_norm:
            hidden += (shape.query + shape.key_value) * norm
        if shape.gated:
            steps = 2 if lora and shape.activation == "silu" and not shape.fused else 4
        else:
            steps = 5 if shape.activation == "gelu_new" else 2  # the one is written out in steps
        kept = inputs * shape.hidden + attention + steps * shape.mlp
        if lora:
            kept += self.settings.lora_rank * len(shape.linears)
        if lora and self.settings.lora_dropout:
            mask = 1 if self.device == "cuda" else 4  # elsewhere it is a factor in fp32
            hidden += (4 + mask) * sum(size for size, _ in shape.linears)
            # In place of one copy for all that reads it, and of two steps less in a fused MLP.
            kept += -inputs * shape.hidden - shape.query + (3 - steps if shape.gated else -1) * shape.mlp
        return hidden + element * kept

    def kept(self) -> int:
        """Bytes of all layers' activations when the forward pass is done; what is worked out again keeps its input."""
        layers, again = self.shape.layers, self._layers_again()
        return self._tokens * ((layers - again) * self._layer() + again * self._stream)

    @property
    def _stream(self) -> int:
        """Bytes of one token between two layers."""
        return self.shape.hidden * (4 if self._autocast else self._element)

    def _layers_again(self) -> int:
        layers = self.shape.layers
        return {"none": 0, "selective": (layers + 1) // 2, "full": layers}[self.settings.gradient_checkpointing]

    def _passing(self) -> int:
        """Bytes of one token that come and go in whichever layer is at work: its widest steps and their gradients."""
        shape = self.shape
        return self._element * (2 * shape.hidden + (5 if shape.gated else 3) * shape.mlp)

    def casts(self) -> float:
        """16-bit copies of what learns in fp32, kept by the layers that are not worked out again."""
        share = 1 - self._layers_again() / self.shape.layers
        return 2 * self._learning * share if self.sixteen_bits else 0.0

    def _hidden(self) -> int:
        """Bytes of the last hidden states, of those with a label, and of their gradients."""
        return 3 * self._element * self._tokens * self.shape.hidden

    def _logits(self) -> int:
        """Bytes of the head's product on labelled rows, all of which may have a label."""
        shape, tokens = self.shape, self._tokens
        if not shape.plain_head:
            return tokens * shape.vocab * (LOGIT_BYTES + 2 * self._element)
        rows = min(tokens, max(CHUNK_ROWS_AT_LEAST, CHUNK_LOGITS[self.device] // shape.vocab))
        # Where the head learns, its gradient is made at once, and once more scaled.
        learns = 0 if self._lora else 2 * 4 * shape.vocab * shape.hidden
        return LOGIT_BYTES * rows * shape.vocab + learns

    def _workspace(self) -> float:
        largest = max(inputs * outputs for inputs, outputs in self.shape.linears)
        expanded = self._element * largest if self.settings.load_in_4bit else 0
        adapting = PEFT if self._lora and self.device == "cpu" else 0
        return CONTEXT[self.device] + adapting + expanded

    def _parts(self, **bytes_of: float) -> dict[str, int]:
        """Return all parts, rounded, with the holes that a card's memory has for what comes and goes."""
        if self.device != "cpu":
            passing = bytes_of.get("activations", 0.0) + bytes_of.get("logits", 0.0)
            bytes_of["fragmentation"] = HOLES[self.device] * passing
        return {name: round(bytes_of.get(name, 0.0)) for name in PARTS}

    def _training_parts(self, **bytes_of: float) -> dict[str, int]:
        """The same within a step: the CPU's heap has holes for all that passed through it, kept or not.

        Gradients are made while activations go, and move into their holes.
        """
        if self.device == "cpu":
            passed = self._tokens * self._layer() * self.shape.layers
            bytes_of["fragmentation"] = max(0.0, HOLES["cpu"] * passed - 4.0 * self._learning)
        return self._parts(**bytes_of)

    def _standing(self) -> dict[str, float]:
        """Return what is there from the first step to the last."""
        adapters = 4.0 * self._learning if self._lora else 0.0
        return {
            "weights": self._weights,
            "adapters": adapters,
            "optimizer": self._optimizer,
            "workspace": self._workspace(),
        }

    def loading(self) -> dict[str, int]:
        """The weights alone; the pages of the file that they are read from give way to anyone."""
        return self._parts(weights=self._weights, workspace=self._workspace())

    def _early_gradients(self) -> float:
        """Bytes of gradients before a backward pass: those of earlier micro-batches; adapters' few count always."""
        return 4.0 * self._learning if self._lora or self.settings.grad_accum > 1 else 0.0

    def forward_done(self) -> dict[str, int]:
        """All activations are there, and the head is at work."""
        return self._training_parts(
            **self._standing(),
            gradients=self._early_gradients(),
            # Autocast remembers what it cast until the forward pass is over.
            activations=self.kept() + self._hidden() + (2 * self._learning if self._autocast else self.casts()),
            logits=self._logits(),
        )

    def backward_begun(self) -> dict[str, int]:
        """All activations are there, and the first layer is on its way back, worked out again where it must be."""
        again = self._tokens * self._layer() if self._layers_again() else 0
        passing = self._tokens * self._passing()
        return self._training_parts(
            **self._standing(),
            gradients=self._early_gradients(),
            activations=self.kept() + self._hidden() + self.casts() + again + passing,
        )

    def backward_done(self) -> dict[str, int]:
        """All gradients are there; of the activations, those of one layer."""
        return self._training_parts(
            **self._standing(),
            gradients=4.0 * self._learning,
            activations=float(self._tokens * (self._layer() + self._passing())),
        )

    def evaluation(self) -> dict[str, int]:
        """Nothing is kept for a backward pass."""
        return self._parts(
            **self._standing(),
            activations=self._tokens * self._passing() + self._hidden() + (2 * self._learning if self._autocast else 0),
            logits=self._logits(),
        )

    def publishing(self) -> dict[str, int]:
        """Adapters are merged in main memory, after the run's weights were given up, into the weights as stored."""
        if self._lora and self.device == "cpu":
            weights = 2.0 * self.shape.params
            return self._parts(weights=weights, adapters=4.0 * self._learning, workspace=self._workspace())
        return self._parts(**self._standing(), activations=float(self._tokens * self._passing()))


@dataclass(frozen=True)
class Alternative:
    """Settings that would make a run fit, and what it would then need."""

    changes: dict[str, Any]
    needed: int

    def __str__(self) -> str:
        return ", ".join(f"{key}={str(value).lower()}" for key, value in self.changes.items())


def alternatives(
    settings: FinetuneHyperparams, limit: int, planned: Callable[[FinetuneHyperparams], Plan], *, quantises: bool
) -> list[Alternative]:
    """Return the changes with which a run needs no more than `limit` bytes, the least harmful first.

    Harm grows from time (smaller passes, recomputing) over precision to what is learned (shorter rows, adapters
    alone). A change that does not do alone is offered with the fewest of those before it. `quantises`: the
    device can hold 4 and 8 bits.
    """

    def cost(changes: list[dict[str, Any]]) -> int:
        return planned(settings.model_copy(update=_merged(changes))).needed

    found: list[Alternative] = []
    rungs = _rungs(settings, quantises=quantises)
    for place, rung in enumerate(rungs):
        changes = [rung]
        if cost(changes) > limit:
            changes = rungs[: place + 1]
            if found or cost(changes) > limit:
                continue
            for other in rungs[place - 1 :: -1] if place else []:
                fewer = [change for change in changes if change is not other]
                changes = fewer if cost(fewer) <= limit else changes
        if not any(alternative.changes.keys() == rung.keys() for alternative in found):
            found.append(Alternative(_merged(changes), cost(changes)))
    return found


def _merged(changes: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for change in changes for key, value in change.items()}


def _rungs(settings: FinetuneHyperparams, *, quantises: bool) -> list[dict[str, Any]]:
    """Return single changes that save memory, the least harmful first."""
    rungs: list[dict[str, Any]] = []
    if settings.batch_size > 1:
        # The same sequences make up a step, so the losses stay.
        rungs.append({"batch_size": 1, "grad_accum": settings.grad_accum * settings.batch_size})
    levels = ("none", "selective", "full")
    for level in levels[levels.index(settings.gradient_checkpointing) + 1 :]:
        rungs.append({"gradient_checkpointing": level})
    if quantises and settings.optimizer == "adamw":
        rungs.append({"optimizer": "adamw_8bit"})
    lora = settings.training_type == "lora"
    if quantises and lora and not settings.load_in_4bit:
        rungs.append({"load_in_4bit": True})
    length = settings.seq_len // 2
    while length >= SEQ_LEN_AT_LEAST:
        rungs.append({"seq_len": length})
        length //= 2
    if not lora:
        rungs.append({"training_type": "lora"})
        rungs += [{"training_type": "lora", "load_in_4bit": True}] if quantises else []
    return rungs
