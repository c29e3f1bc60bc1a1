"""How much is added, held against the parameters that were asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plans.growth import MULTIPLE, Room, Size, size

QWEN = Room(params=1_543_714_304, layer_params=46_797_824, layers=28, hidden=1536)  # Qwen2.5-1.5B


@pytest.mark.parametrize(
    ("shape", "expected"), [("depth", Size(16, 0)), ("width", Size(0, 5952)), ("auto", Size(7, 2752))]
)
def test_half_as_many_again_of_a_known_model(shape: str, expected: Size) -> None:
    found = size(QWEN, 0.5, shape)  # type: ignore[arg-type]
    assert found == expected
    assert found.added(QWEN) / QWEN.params == pytest.approx(0.5, rel=0.04)


@given(
    st.floats(0.01, 4),
    st.sampled_from(["depth", "width", "auto"]),
    st.integers(1, 100),
    st.integers(64, 8192),
    st.floats(0, 1),
)
def test_what_is_added_is_within_a_block_or_a_step_of_neurons_of_what_was_asked(
    ratio: float, shape: str, layers: int, hidden: int, head: float
) -> None:
    layer = 12 * hidden * hidden
    room = Room(round(layers * layer * (1 + head)), layer, layers, hidden)
    found = size(room, ratio, shape)  # type: ignore[arg-type]
    assert found.blocks > 0 or found.units > 0
    assert found.units % MULTIPLE == 0
    least = layer if shape == "depth" else MULTIPLE * room.unit * (layers + found.blocks)
    assert abs(found.added(room) - ratio * room.params) <= least
