"""How much a model grows by: blocks and neurons for a wanted share of new parameters.

The rule: arithmetic alone; where the blocks stand is decided on the data, by `engine.trainer.grow.diagnose`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from engine.plans.model_shape import Shape

# Decoders of one pattern: attention with o_proj, gated MLP with down_proj, one list of like layers.
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")

GrowthShape = Literal["depth", "width", "auto"]
MULTIPLE = 64  # neurons: a width that matrix units like


@dataclass(frozen=True)
class Room:
    """What of a decoder counts here: parameters in all and in one layer, its layers, and its width h."""

    params: int
    layer_params: int
    layers: int
    hidden: int

    @property
    def unit(self) -> int:
        """Parameters of one neuron of a gated MLP, biases left out."""
        return 3 * self.hidden


def room(shape: Shape) -> Room:
    """Return what of a model's shape counts here."""
    return Room(shape.params, shape.layer, shape.layers, shape.hidden)


@dataclass(frozen=True)
class Size:
    """What is added: `blocks` new layers, and `units` neurons in the MLP of every layer, new ones included."""

    blocks: int
    units: int

    def added(self, room: Room) -> int:
        """Return the number of new parameters."""
        return self.blocks * room.layer_params + self.units * room.unit * (room.layers + self.blocks)


def size(room: Room, ratio: float, shape: GrowthShape) -> Size:
    """Return the size that comes nearest to `ratio` new parameters for each old one, one block or 64 neurons at least.

    auto: a block for every four layers, as far as the ratio goes, and the rest as width.
    """
    wanted = ratio * room.params
    if shape == "depth":
        return Size(max(1, round(wanted / room.layer_params)), 0)
    blocks = min(math.ceil(room.layers / 4), int(wanted // room.layer_params)) if shape == "auto" else 0
    neurons = (wanted - blocks * room.layer_params) / (room.unit * (room.layers + blocks))
    units = MULTIPLE * round(neurons / MULTIPLE)
    return Size(blocks, units if blocks else max(units, MULTIPLE))
