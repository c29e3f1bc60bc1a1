"""The learning rate as a pure function of the step."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.trainer.schedule import learning_rate

SHAPES = st.sampled_from(["cosine", "linear", "constant"])


@given(st.integers(1, 3000), st.floats(1e-6, 1), SHAPES, st.integers(0, 3000))
def test_the_rate_rises_to_its_peak_then_never_again_and_stays_within_bounds(
    steps: int, peak: float, shape: str, warmup: int
) -> None:
    rates = [learning_rate(step, steps=steps, peak=peak, shape=shape, warmup=warmup) for step in range(1, steps + 1)]
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    after = rates[max(0, warmup - 1) :]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(after))
    if warmup:
        assert rates[min(warmup, steps) - 1] == pytest.approx(peak * min(steps / warmup, 1))
        assert rates[0] == pytest.approx(peak / warmup)
    if warmup < steps:
        assert rates[-1] == pytest.approx(peak if shape == "constant" else peak / 10)
        assert min(rates[warmup:]) >= peak / 10 * (1 - 1e-9)


def test_cosine_and_linear_meet_half_way_down() -> None:
    for shape in ("cosine", "linear"):
        assert learning_rate(60, steps=110, peak=1.0, shape=shape, warmup=10) == pytest.approx(0.55)
    early = {s: learning_rate(20, steps=110, peak=1.0, shape=s, warmup=0) for s in ("cosine", "linear")}
    assert early["cosine"] > early["linear"]
