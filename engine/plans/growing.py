"""The memory of a train job: the model as it was, frozen or not, and beside it what was grown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.plans import growth, writing
from engine.plans.finetuning import Finetuning
from engine.plans.growth import Size
from engine.plans.model_shape import Shape
from engine.plans.passes import Layer, Moments
from engine.plans.plan import CHUNK_LOGITS, DeviceType, Parts, Plan, of_moments

if TYPE_CHECKING:
    from engine.jobs.hyperparams import TrainHyperparams

# As in engine.trainer.grow: what is read at once, and how.
PROBE_SEQUENCES, PROBE_TOKENS = 8, 256
PROBE_ROWS = 256  # tokens whose logits are compared at a time
COMPARED = 2 * 4 + 5 * 8  # bytes of each: both models' in fp32, and what is worked out of them in fp64
# Bytes of a logit where a loss is worked out of all of them: as made, in fp32, its softmax, its gradient.
JUDGED = 4 * 4
# Sequences that the model writes: one for each step within limits. Four fifths are kept, and of those three quarters
# are held to what the original said.
OWN_SEQUENCES = (40, 320)
OWN_TOKENS = 256  # of each at most
RETAINED_SHARE = 0.8 * 0.75
DIVERGING = 10  # bytes of a logit of a chunk: two heads on half as many rows, and what is worked out of them
MOST_RANK = 1024
BLOCKS_FROM = 1 / 3  # of the old layers, which get no block behind them


@dataclass(frozen=True)
class Growing(Moments):
    """What is there at each moment of a train job; `shape` is the model before it grows."""

    settings: TrainHyperparams

    @property
    def size(self) -> Size:
        """What is added."""
        return growth.size(growth.room(self.shape), self.settings.growth_ratio, self.settings.growth_shape)

    @property
    def added(self) -> int:
        """Weights that are added."""
        return self.size.added(growth.room(self.shape))

    @property
    def grown(self) -> Shape:
        """The model as it will be."""
        size = self.size
        return self.shape.resized(layers=self.shape.layers + size.blocks, mlp=self.shape.mlp + size.units)

    @property
    def head_learns(self) -> bool:
        """Only where the old weights do."""
        return self.settings.train_scope == "all"

    @property
    def learning(self) -> int:
        """What is new, or everything."""
        return self.added + (self.shape.params if self.head_learns else 0)

    @property
    def layer(self) -> Layer:
        """The old ones."""
        return Layer(self.element, learns=self.head_learns, autocast=self.sixteen_bits and self.head_learns)

    @property
    def autocast(self) -> bool:
        """What is new is held in fp32, whatever the old is held in."""
        return self.sixteen_bits

    @property
    def again(self) -> int:
        """Of all layers, new ones too."""
        layers = self.grown.layers
        return {"none": 0, "selective": (layers + 1) // 2, "full": layers}[self.settings.gradient_checkpointing]

    def casts(self) -> float:
        """Kept by the layers that are not worked out again."""
        share = 1 - self.again / self.grown.layers
        return 2 * self.learning * share if self.sixteen_bits else 0.0

    def _layers_kept(self) -> float:
        """Return the bytes of one token that all layers keep.

        New neurons keep their input and every step of their width; layers before the first new weight keep nothing.
        """
        shape, size, learns = self.shape, self.size, self.head_learns
        old = shape.layers if learns or size.units else shape.layers - int(shape.layers * BLOCKS_FROM)
        beside = self.element * (4 * size.units + shape.hidden) if size.units else 0
        block = Layer(self.element, learns=True, autocast=self.sixteen_bits).kept(self.grown, self.device)
        return old * (self.layer.kept(shape, self.device) + beside) + size.blocks * block

    def kept_in_layers(self) -> float:
        """As of any model, over old and new layers."""
        share = self.again / self.grown.layers
        return (1 - share) * self._layers_kept() + self.again * self.stream

    def passed(self) -> float:
        """What the layers keep comes and goes, kept or not."""
        return self._layers_kept()

    def standing(self) -> dict[str, float]:
        """Return what is there from the first step to the last: what learns is held in fp32."""
        return {
            "weights": 4.0 * self.shape.params if self.head_learns else self.frozen,
            "growth": 4.0 * self.added,
            "optimizer": self.optimizer,
            "retained": self._retained(),
            "workspace": self.workspace(),
        }

    def _retained(self) -> float:
        """The original's last hidden states of its own text, which are kept in main memory."""
        if not self.settings.retain_weight or self.device != "cpu" or not self.shape.plain_head:
            return 0.0
        return (
            self.element * RETAINED_SHARE * self._sequences * min(self.settings.seq_len, OWN_TOKENS) * self.shape.hidden
        )

    @property
    def _sequences(self) -> int:
        """How many the model writes."""
        least, most = OWN_SEQUENCES
        return min(max(self.settings.total_steps, least), most) if self.settings.retain_weight else least

    # Phases of its own --------------------------------------------------------------------------------------------

    def _before(self) -> dict[str, float]:
        return {"weights": self.standing()["weights"], "workspace": self.workspace()}

    def diagnosis(self) -> Parts:
        """A sequence at a time, forward and back through frozen layers, with all its logits."""
        shape, tokens = self.shape, min(self.settings.seq_len, PROBE_TOKENS)
        kept = Layer(self.element).kept(shape, self.device) * shape.layers
        return self.parts(
            **self._before(),
            activations=float(tokens * (kept + self.layer.passing(shape)) + 4 * shape.hidden * shape.mlp),
            logits=float(tokens * shape.vocab * JUDGED),
        )

    def writing(self) -> Parts:
        """The original writes what it is held to and judged by."""
        text = writing.bytes_of(self.shape, self.element, self._sequences, min(self.settings.seq_len, OWN_TOKENS))
        return self.parts(**self._before(), **text)

    def preservation(self) -> Parts:
        """Both models in fp32: two layers, what goes in and comes out of them, then the head on a few tokens."""
        shape, tokens = self.shape, PROBE_SEQUENCES * min(self.settings.seq_len, PROBE_TOKENS)
        layers = 4.0 * (shape.layer + self.grown.layer)
        head = 4.0 * shape.vocab * shape.hidden if self.element < 4 or self.settings.load_in_4bit else 0.0
        moments = (
            {"activations": layers + 4 * tokens * 5 * shape.hidden + tokens * Layer(4).passing(self.grown)},
            {"activations": 4.0 * tokens * 4 * shape.hidden, "logits": head + PROBE_ROWS * shape.vocab * COMPARED},
        )
        found = [self.parts(**self._before(), growth=4.0 * self.added, **moment) for moment in moments]
        return max(found, key=lambda parts: sum(parts.values()))

    def retention(self) -> Parts:
        """A step's other pass, after the first one's gradients: one sequence, and two heads on it."""
        shorter = {"batch_size": 1, "seq_len": min(self.settings.seq_len, OWN_TOKENS)}
        work = replace(self, settings=self.settings.model_copy(update=shorter))
        logits = DIVERGING * min(CHUNK_LOGITS[self.device], work.tokens * self.shape.vocab)
        return work.training_parts(
            **work.standing(),
            gradients=4.0 * self.learning,
            activations=work.kept() + 2 * work.hidden(work.tokens) + work.forward_casts(),
            logits=float(logits),
        )

    def publishing(self) -> Parts:
        """Old and new become one model in main memory, from the old as stored, after the run's weights were given up.

        The C library keeps the room of what was freed, and what comes moves into it; the file that the old is read from
        counts on top (SmolLM2-135M on the CPU: 0.15 GB above the training's peak).
        """
        if self.device == "cpu":
            held = 4.0 * self.learning
            return self.parts(**self.standing(), original=2.0 * self.shape.params, fragmentation=held)
        return self.parts(**self.standing())

    def comparison(self) -> list[Parts]:
        """The ungrown model is trained on the same rows, before the growth: in full, or adapters of as many weights on
        one in 4 bits. Its few settings that decide on memory are those of the job."""
        from engine.jobs.hyperparams import FinetuneHyperparams

        shape, settings = self.shape, self.settings
        shared = settings.model_dump(include=set(FinetuneHyperparams.model_fields) & set(type(settings).model_fields))
        kind: dict[str, object] = {"training_type": "full"}
        if settings.load_in_4bit:
            kind = {"lora_rank": min(max(round(self.added / shape.adapter(1)), 1), MOST_RANK)}
        work = Finetuning(shape, FinetuneHyperparams.model_validate(shared | kind), self.device, self.sixteen_bits)
        return [work.forward_done(), work.backward_begun(), work.backward_done(), work.evaluation()]


def mode(settings: TrainHyperparams) -> str:
    """Return the kind of run whose peaks are comparable: grow, qgrow or growall, and what is recomputed."""
    kind = "growall" if settings.train_scope == "all" else "qgrow" if settings.load_in_4bit else "grow"
    return f"{kind}/{settings.gradient_checkpointing}"


def plan(shape: Shape, settings: TrainHyperparams, device: DeviceType, *, sixteen_bits: bool) -> Plan:
    """Return the plan of a train job on such a model."""
    work = Growing(shape, settings, device, sixteen_bits)
    training = [work.forward_done(), work.backward_begun(), work.backward_done()]
    moments = {
        "loading": [work.loading()],
        "diagnosis": [work.diagnosis()],
        "writing": [work.writing()],
        "preservation": [work.preservation()],
        "training": training + ([work.retention()] if settings.retain_weight else []),
        "evaluation": [work.evaluation()],
        "publishing": [work.publishing()],
    }
    if settings.compare_ungrown:
        moments["comparison"] = work.comparison()
    return of_moments(mode(settings), moments)
