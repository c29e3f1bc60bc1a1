"""The memory of a model that writes: keys and values of what it wrote, and the logits of the next tokens.

As in engine.trainer.selftext.
"""

from __future__ import annotations

from engine.plans.model_shape import Shape

BATCH = 64  # sequences at a time
ROOM_BYTES = 2**30  # for their keys and values: where they take more, fewer are written at a time
SAMPLED = 4 * 4  # bytes of a logit: as made, in fp32, as probability, added up


def bytes_of(shape: Shape, element: int, count: int, length: int) -> dict[str, float]:
    """Return the parts of writing `count` sequences of `length` tokens, of which a half at most begin alike."""
    each = 2 * shape.key_value * shape.layers * length * element
    rows = max(1, min(BATCH, ROOM_BYTES // each, (count + 1) // 2))
    return {
        "activations": float(element * rows * (2 * shape.hidden + 5 * shape.mlp)),
        "logits": float(SAMPLED * rows * shape.vocab),
        "cache": float(rows * each),
    }
