"""How much of a model goes: neurons or layers for a wanted share.

The rule: arithmetic alone; which of them go is decided on the model's own text, by `engine.trainer.contract`.
"""

from __future__ import annotations

from engine.plans.model_shape import Shape

MULTIPLE = 8  # neurons: the least step of a width that every layer keeps


def layers_touched(asked: int | None, layers: int) -> int:
    """Return how many layers are processed where `asked` is given, or where nothing is."""
    return min(8, layers) if asked is None else asked


def uniform_width(shape: Shape, ratio: float, touched: int) -> int:
    """Return the neurons that every layer keeps where `touched` layers' share goes, spread over all of them."""
    return MULTIPLE * round(shape.mlp * (1 - ratio * touched / shape.layers) / MULTIPLE)


def targeted_width(shape: Shape, ratio: float) -> int:
    """Return the neurons that a processed layer keeps."""
    return shape.mlp - round(ratio * shape.mlp)


def layers_removed(shape: Shape, ratio: float, touched: int) -> int:
    """Return how many whole layers have about as many parameters as the neurons that would go; one at least."""
    neurons = ratio * shape.mlp * touched
    return max(1, round(neurons * 3 * shape.hidden / shape.layer))


def contracted(shape: Shape, ratio: float, touched: int, layout: str) -> Shape:
    """Return what is left; where layers differ, each as wide as they are on average."""
    if layout == "depth":
        return shape.resized(layers=max(1, shape.layers - layers_removed(shape, ratio, touched)))
    if layout == "uniform":
        return shape.resized(mlp=max(MULTIPLE, uniform_width(shape, ratio, touched)))
    gone = (shape.mlp - targeted_width(shape, ratio)) * touched / shape.layers
    return shape.resized(mlp=max(1, round(shape.mlp - gone)))
