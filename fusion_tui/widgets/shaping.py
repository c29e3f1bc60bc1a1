"""How a run changes the shape of its model: what its events, points and result tell of layers, growth and loss.

The rule: pure functions; what a worker of another version wrote otherwise is left out, and nothing fails on it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.service import Job, Point
from fusion_tui import format as fmt
from fusion_tui.messages import RunView

_OTHERWISE = (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError)
NEW, LESS, GONE = "▲", "▼", "✗"


@dataclass(frozen=True)
class Layers:
    """A value for each layer, from 0, None where it is not known; `signs` mark layers, and `note` says what that is."""

    title: str
    values: tuple[float | None, ...]
    signs: Mapping[int, str] = field(default_factory=dict)
    note: str = ""


def layers_of(view: RunView) -> Layers | None:
    """Return what a run tells of its model's layers: scores before growth, damage of a contraction; None before."""
    for event in reversed(view.events):
        if event.kind in _READERS:
            try:
                return _READERS[event.kind](event.payload, view.aside)
            except _OTHERWISE:
                return None
    return None


def _finite(value: Any) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and math.isfinite(number) else None


def _grown(payload: Mapping[str, Any], _: Sequence[Point]) -> Layers:
    scores = {int(one["layer"]): _finite(one["score"]) for one in payload["layers"]}
    behind = Counter(int(layer) for layer in payload["blocks"])
    signs = {layer: NEW if count == 1 else str(min(count, 9)) for layer, count in behind.items()}
    note = "no new layer: every MLP becomes wider"
    if behind:
        note = f"{NEW} {fmt.plural(behind.total(), 'new layer')} behind {fmt.numbers(sorted(behind))}"
    return Layers("score on this data, 0 to 1", _in_order(scores, len(scores)), signs, note)


def _contracted(payload: Mapping[str, Any], aside: Sequence[Point]) -> Layers:
    layout, processed = payload["layout"], [int(layer) for layer in payload["layers"]]
    first = int(payload.get("steps_after", 0)) + 1  # the step of the first layer's point
    damage = {
        point.step - first: _finite(point.loss) for point in aside if point.phase == "prune" and point.step >= first
    }
    scores = dict(enumerate(map(_finite, payload["scores"])))
    size = max([len(scores), *(layer + 1 for layer in (*processed, *damage))])
    title = "damage: share of the MLP's output lost"
    if not damage and scores:
        title = "influence" if layout == "depth" else "damage expected, share of the layer"
    sign, verb = (GONE, "go") if layout == "depth" else (LESS, "lose neurons")
    if len(processed) == size:
        return Layers(title, _in_order(damage or scores, size), {}, "every layer loses neurons")
    note = f"{sign} {len(processed)} of {size} layers {verb}"
    return Layers(title, _in_order(damage or scores, size), dict.fromkeys(processed, sign), note)


def _in_order(found: Mapping[int, float | None], size: int) -> tuple[float | None, ...]:
    return tuple(found.get(layer) for layer in range(size))


_READERS: dict[str, Callable[[Mapping[str, Any], Sequence[Point]], Layers]] = {
    "diagnose": _grown,
    "contract": _contracted,
}


def summary(view: RunView) -> str:
    """Return in a line where a train job is and what it grows, or what a contract job takes; empty for others."""
    told = {"train": _training, "contract": _contracting}.get(view.job.type)
    return " · ".join(part for part in told(view) if part) if told else ""


def _training(view: RunView) -> Iterator[str]:
    yield _cycle(view.job)
    yield growth_of(view.result) or _asked(_event(view, "diagnose"))
    moved = (view.result or {}).get("function_preservation", _event(view, "grow").get("change"))
    if isinstance(moved, int | float):
        yield fmt.preserved(moved)


def _cycle(job: Job) -> str:
    try:
        turns, cycles, steps = (int(job.hyperparams[name]) for name in ("turns", "cycles", "steps_per_cycle"))
        turn, cycle = divmod(min(job.step // steps, turns * cycles - 1), cycles)
    except _OTHERWISE:
        return ""
    return f"turn {turn + 1}/{turns} · cycle {cycle + 1}/{cycles}"


def _asked(diagnosis: Mapping[str, Any]) -> str:
    try:
        return fmt.growth(len(diagnosis["blocks"]), diagnosis["units"], diagnosis["planned"] / diagnosis["params"])
    except _OTHERWISE:
        return ""


def growth_of(result: Mapping[str, Any] | None) -> str:
    """Return what a finished train job's model grew by."""
    try:
        found = result or {}
        share = found["params_delta"] / found["params_before"]
        return fmt.growth(found["blocks_added"], found["neurons_added"], share)
    except _OTHERWISE:
        return ""


def _contracting(view: RunView) -> Iterator[str]:
    job, chosen = view.job, _event(view, "contract")
    yield f"layout {fmt.clean(str(job.hyperparams.get('layout', '–')))}"
    layers = chosen.get("layers")
    if isinstance(layers, list):
        yield fmt.plural(len(layers), "layer")
    ratio = (view.result or {}).get("param_ratio")
    if isinstance(ratio, int | float):
        yield f"{100 * ratio:.1f} % of the parameters left"


def _event(view: RunView, kind: str) -> Mapping[str, Any]:
    return next((event.payload for event in reversed(view.events) if event.kind == kind), {})
