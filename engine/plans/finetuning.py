"""The memory of a finetune job: adapters on frozen weights, or every weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.plans.model_shape import Shape
from engine.plans.passes import Layer, Moments
from engine.plans.plan import DeviceType, Parts, Plan, of_moments

if TYPE_CHECKING:
    from engine.jobs.hyperparams import FinetuneHyperparams

PEFT = 60_000_000  # what the library brings with it on the CPU (measured)


@dataclass(frozen=True)
class Finetuning(Moments):
    """What is there at each moment of a finetune."""

    settings: FinetuneHyperparams

    @property
    def _lora(self) -> bool:
        return self.settings.training_type == "lora"

    @property
    def head_learns(self) -> bool:
        """Only where every weight does."""
        return not self._lora

    @property
    def learning(self) -> int:
        """The adapters, or every weight."""
        return self.shape.adapter(self.settings.lora_rank) if self._lora else self.shape.params

    @property
    def layer(self) -> Layer:
        """Frozen with adapters, or all of it learns in fp32."""
        if not self._lora:
            return Layer(self.element, learns=True, autocast=self.sixteen_bits)
        return Layer(self.element, rank=self.settings.lora_rank, dropout=self.settings.lora_dropout > 0)

    def workspace(self) -> float:
        """With the library that keeps adapters."""
        return super().workspace() + (PEFT if self._lora and self.device == "cpu" else 0)

    def standing(self) -> dict[str, float]:
        """Return what is there from the first step to the last: what learns is held in fp32."""
        return {
            "weights": self.frozen if self._lora else 4.0 * self.shape.params,
            "adapters": 4.0 * self.learning if self._lora else 0.0,
            "optimizer": self.optimizer,
            "workspace": self.workspace(),
        }

    def publishing(self) -> Parts:
        """Adapters are merged in main memory, after the run's weights were given up, into the weights as stored."""
        if self._lora and self.device == "cpu":
            weights = 2.0 * self.shape.params
            return self.parts(weights=weights, adapters=4.0 * self.learning, workspace=self.workspace())
        return self.parts(**self.standing(), activations=float(self.tokens * self.layer.passing(self.shape)))


def mode(settings: FinetuneHyperparams) -> str:
    """Return the kind of run whose peaks are comparable: full, lora or qlora, and what is recomputed."""
    kind = "qlora" if settings.load_in_4bit else settings.training_type
    return f"{kind}/{settings.gradient_checkpointing}"


def plan(shape: Shape, settings: FinetuneHyperparams, device: DeviceType, *, sixteen_bits: bool) -> Plan:
    """Return the plan of a finetune of such a model."""
    work = Finetuning(shape, settings, device, sixteen_bits)
    moments = {
        "loading": [work.loading()],
        "training": [work.forward_done(), work.backward_begun(), work.backward_done()],
        "evaluation": [work.evaluation()],
        "publishing": [work.publishing()],
    }
    return of_moments(mode(settings), moments)
