"""Passes through a decoder: what one layer keeps of a token, what comes and goes, what the head takes.

The rule: what is counted is what autograd was seen to keep (tests/trainer/test_memory_formulas.py), not what a formula
of the field says it should. Bytes throughout; each type of job says what of its model stands and what learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.plans import plan
from engine.plans.model_shape import Shape
from engine.plans.plan import CHUNK_LOGITS, CHUNK_ROWS_AT_LEAST, CONTEXT, HOLES, LOGIT_BYTES, NF4, DeviceType, Parts

if TYPE_CHECKING:
    from engine.jobs.hyperparams import LoopHyperparams


@dataclass(frozen=True)
class Layer:
    """How a decoder layer is run: bytes of what is multiplied, which of its weights learn, and what runs beside them.

    `learns`: every weight of it; `autocast`: weights in fp32 are multiplied in 16 bits; `rank`: of adapters on its
    linear maps, 0 for none.
    """

    element: int
    learns: bool = False
    autocast: bool = False
    rank: int = 0
    dropout: bool = False

    @property
    def fused(self) -> bool:
        """Whether the end of a gated MLP is one function, which adapters' is."""
        return bool(self.rank)

    def kept(self, shape: Shape, device: DeviceType) -> int:
        """Return the bytes that it keeps of one token for the backward pass, as autograd was seen to keep them.

        Each norm keeps its input, in fp32 where it works so, and where its gain learns also what that is multiplied
        by; linear maps that learn or have an adapter keep what goes in, which autocast writes anew for each of them;
        attention keeps query, key and value, its output, and that put together; the MLP keeps every step of its width,
        of a fused one the first two alone, of a frozen one all but the last; an adapter keeps its narrow middle.
        """
        element = self.element
        norm = 4 + (4 if self.learns else 0) if shape.rms else element
        hidden = shape.norms * shape.hidden * norm
        if shape.query_norm:
            hidden += (shape.query + shape.key_value) * norm
        return hidden + self._dropped(shape, device) + element * self._multiplied(shape)

    def _multiplied(self, shape: Shape) -> int:
        """Elements kept of what is multiplied."""
        # One matrix for query, key and value is kept whole by the value that is a part of it.
        again = shape.query + shape.key_value if shape.fused or self.autocast else 0
        attention = 3 * shape.query + 2 * shape.key_value + again
        if not self.learns and not self.rank:
            # Frozen maps need nothing but the gradient of what comes out of them.
            return attention - shape.query + (3 if shape.gated else 1) * shape.mlp
        inputs = (sum(size == shape.hidden for size, _ in shape.linears[:-2]) if self.autocast else 1) + 1
        kept = inputs * shape.hidden + attention + self._steps(shape) * shape.mlp + self.rank * len(shape.linears)
        if self.dropout:
            # In place of one copy for all that reads it, and of two steps less in a fused MLP.
            less = (3 - self._steps(shape) if shape.gated else -1) * shape.mlp
            kept += -inputs * shape.hidden - shape.query + less
        return kept

    def _steps(self, shape: Shape) -> int:
        """Copies as wide as the MLP."""
        if shape.gated:
            return 2 if self.fused and shape.activation == "silu" and not shape.fused else 4
        return 5 if shape.activation == "gelu_new" else 2  # the one is written out in steps

    def _dropped(self, shape: Shape, device: DeviceType) -> int:
        if not self.dropout:
            return 0
        mask = 1 if device == "cuda" else 4  # elsewhere it is a factor in fp32
        return (4 + mask) * sum(size for size, _ in shape.linears)

    def passing(self, shape: Shape) -> int:
        """Return the bytes of one token that come and go in it: its widest steps and their gradients."""
        return self.element * (2 * shape.hidden + (5 if shape.gated else 3) * shape.mlp)


@dataclass(frozen=True)
class Moments:
    """One run's arithmetic: what is there at each moment that may be the peak, by part."""

    shape: Shape
    settings: LoopHyperparams
    device: DeviceType
    sixteen_bits: bool

    # What the type of job says -----------------------------------------------------------------------------------

    @property
    def learning(self) -> int:
        """Weights that learn."""
        raise NotImplementedError

    @property
    def layer(self) -> Layer:
        """How most layers are run."""
        raise NotImplementedError

    def standing(self) -> dict[str, float]:
        """Return what is there from the first step to the last."""
        raise NotImplementedError

    @property
    def head_learns(self) -> bool:
        """Whether the output head does."""
        raise NotImplementedError

    # What follows from it ----------------------------------------------------------------------------------------

    @property
    def element(self) -> int:
        """Bytes of what is multiplied."""
        return 2 if self.sixteen_bits else 4

    @property
    def frozen(self) -> float:
        """Bytes of the model where it is frozen: as it is multiplied, or its linear maps in 4 bits."""
        shape = self.shape
        if self.settings.load_in_4bit:
            return NF4 * shape.linear + self.element * (shape.params - shape.linear)
        return self.element * shape.params

    @property
    def optimizer(self) -> float:
        """Bytes of the optimiser's state."""
        if self.settings.optimizer == "adamw":
            return plan.ADAM * self.learning
        # Paged state gives way: under pressure all of it moves to main memory.
        paged = self.settings.optimizer == "paged_adamw_8bit" and self.device == "cuda"
        return 0.0 if paged else plan.ADAM_8BIT * self.learning

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass."""
        return self.settings.batch_size * self.settings.seq_len

    @property
    def again(self) -> int:
        """Layers that are worked out again in the backward pass."""
        layers = self.shape.layers
        return {"none": 0, "selective": (layers + 1) // 2, "full": layers}[self.settings.gradient_checkpointing]

    @property
    def autocast(self) -> bool:
        """Whether weights held in fp32 are multiplied in 16 bits."""
        return self.layer.autocast

    @property
    def stream(self) -> int:
        """Bytes of one token between two layers."""
        return self.shape.hidden * (4 if self.layer.autocast else self.element)

    def kept_in_layers(self) -> float:
        """Return the bytes of one token in all layers when the forward pass is done; one worked out again keeps its
        input."""
        once = self.layer.kept(self.shape, self.device)
        return (self.shape.layers - self.again) * once + self.again * self.stream

    def kept(self) -> float:
        """Return the bytes of all layers' activations when the forward pass is done."""
        return self.tokens * self.kept_in_layers()

    def passed(self) -> float:
        """Return the bytes of one token that pass through all layers, kept or not."""
        return self.layer.kept(self.shape, self.device) * self.shape.layers

    def casts(self) -> float:
        """16-bit copies of what learns in fp32, kept by the layers that are not worked out again."""
        share = 1 - self.again / self.shape.layers
        return 2 * self.learning * share if self.sixteen_bits else 0.0

    def forward_casts(self) -> float:
        """The same until the forward pass is over: autocast remembers what it cast."""
        return 2.0 * self.learning if self.autocast else self.casts()

    def hidden(self, tokens: int) -> int:
        """Bytes of the last hidden states, of those with a label, and of their gradients."""
        return 3 * self.element * tokens * self.shape.hidden

    def logits(self, tokens: int) -> int:
        """Bytes of the head's product on labelled rows, all of which may have a label."""
        shape = self.shape
        if not shape.plain_head:
            return tokens * shape.vocab * (LOGIT_BYTES + 2 * self.element)
        rows = min(tokens, max(CHUNK_ROWS_AT_LEAST, CHUNK_LOGITS[self.device] // shape.vocab))
        # Where the head learns, its gradient is made at once, and once more scaled.
        learns = 2 * 4 * shape.vocab * shape.hidden if self.head_learns else 0
        return LOGIT_BYTES * rows * shape.vocab + learns

    def workspace(self) -> float:
        """What is there before the model, and one layer's map expanded from 4 bits."""
        largest = max(inputs * outputs for inputs, outputs in self.shape.linears)
        return CONTEXT[self.device] + (self.element * largest if self.settings.load_in_4bit else 0)

    def parts(self, **bytes_of: float) -> Parts:
        """Return all parts, rounded, with the holes that a card's memory has for what comes and goes."""
        if self.device != "cpu":
            bytes_of["fragmentation"] = HOLES[self.device] * sum(bytes_of.get(name, 0.0) for name in plan.PASSING)
        return {name.replace("_", " "): round(size) for name, size in bytes_of.items()}

    def training_parts(self, **bytes_of: float) -> Parts:
        """The same within a step: the CPU's heap has holes for all that passed through it, kept or not.

        Gradients are made while activations go, and move into their holes.
        """
        if self.device == "cpu":
            passed = self.tokens * self.passed()
            bytes_of["fragmentation"] = max(0.0, HOLES["cpu"] * passed - 4.0 * self.learning)
        return self.parts(**bytes_of)

    # The moments -------------------------------------------------------------------------------------------------

    def loading(self) -> Parts:
        """The weights alone; the pages of the file that they are read from give way to anyone."""
        return self.parts(weights=self.standing()["weights"], workspace=self.workspace())

    def early_gradients(self) -> float:
        """Bytes of gradients before a backward pass: those of earlier passes; the few of adapters count always."""
        return 4.0 * self.learning if not self.head_learns or self.settings.grad_accum > 1 else 0.0

    def forward_done(self) -> Parts:
        """All activations are there, and the head is at work."""
        return self.training_parts(
            **self.standing(),
            gradients=self.early_gradients(),
            activations=self.kept() + self.hidden(self.tokens) + self.forward_casts(),
            logits=self.logits(self.tokens),
        )

    def backward_begun(self) -> Parts:
        """All activations are there, and the first layer is on its way back, worked out again where it must be."""
        again = self.layer.kept(self.shape, self.device) if self.again else 0
        passing = self.tokens * (again + self.layer.passing(self.shape))
        return self.training_parts(
            **self.standing(),
            gradients=self.early_gradients(),
            activations=self.kept() + self.hidden(self.tokens) + self.casts() + passing,
        )

    def backward_done(self) -> Parts:
        """All gradients are there; of the activations, those of one layer."""
        one = self.layer.kept(self.shape, self.device) + self.layer.passing(self.shape)
        return self.training_parts(
            **self.standing(), gradients=4.0 * self.learning, activations=float(self.tokens * one)
        )

    def evaluation(self) -> Parts:
        """Nothing is kept for a backward pass."""
        casts = self.forward_casts() if self.autocast else 0
        return self.parts(
            **self.standing(),
            activations=self.tokens * self.layer.passing(self.shape) + self.hidden(self.tokens) + casts,
            logits=self.logits(self.tokens),
        )
