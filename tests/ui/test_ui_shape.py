"""Runs that change their model's shape: what the screens tell of growth, comparison, contraction and chains."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.pilot import Pilot
from textual.widgets import TabbedContent

from engine.service import Event, Job, Point, Service
from fusion_tui import format as fmt
from fusion_tui.messages import RunView
from fusion_tui.widgets.curve import CYCLES_MARKED, Look, trace
from fusion_tui.widgets.layer_bars import EIGHTHS, LABEL, draw_layers
from fusion_tui.widgets.loss_chart import LossChart
from fusion_tui.widgets.metric_tabs import MetricTabs
from fusion_tui.widgets.shaping import Layers, layers_of
from store import jobs, telemetry
from tests.ui.driving import LARGE, SMALL, Runs, curve, open_app, screen_text, sees, until

GROWTH: dict[str, Any] = {"turns": 1, "cycles": 6, "steps_per_cycle": 20, "growth_ratio": 0.25, "compare_ungrown": True}
DIAGNOSIS: dict[str, Any] = {
    "layers": [
        {"layer": number, "influence": 0.1, "gradient": 0.2, "utilisation": 0.3, "score": number / 11}
        for number in range(12)
    ],
    "blocks": [5, 8, 8],
    "units": 64,
    "planned": 25,
    "params": 100,
}


def growing(runs: Runs, steps: int = 30) -> Job:
    """Return a train run that has reached `steps`."""
    job = runs.submit("train", "grow", dataset_id="data-1", hyperparams=GROWTH)
    job = runs.work(job, activity="training", eta_s=360.0)
    if steps:
        runs.report(job, [Point(0, "eval", 1000.0, loss=5.25), *curve(range(1, steps + 1))])
    return runs.service.job(job.id)


def contracting(runs: Runs, layout: str = "uniform") -> Job:
    """Return a contract run without steps that works."""
    job = runs.submit("contract", "shrink", hyperparams={"layout": layout})
    activity = "pruning: 5 of 12 layers"
    return runs.work(job, activity=activity, done=0.72, eta_s=95.0)


def rival(steps: range) -> list[Point]:
    """Return what the comparison without growth reports."""
    trained = [Point(step, "ungrown", 500.0 + step, loss=9.0, tokens=1024 * step) for step in steps]
    return [*trained, Point(steps[-1], "ungrown_eval", 600.0, loss=8.5)]


async def page(pilot: Pilot[Any], pane: str) -> None:
    """Go to one of the run's panes, in one step: what keys lead there is tested elsewhere."""
    await sees(pilot, "Charts")
    pilot.app.screen.query_one(TabbedContent).active = pane


async def test_the_header_tells_turn_cycle_growth_and_preservation(service: Service, runs: Runs) -> None:
    job = growing(runs)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await sees(pilot, "step 30/120 · 25%", "turn 1/1 · cycle 2/6")
        assert "layers," not in screen_text(app)
        runs.tell(job, "diagnose", **DIAGNOSIS)
        runs.tell(job, "grow", change=0.0, kl=0.0, agreement=1.0)
        await sees(pilot, "turn 1/1 · cycle 2/6 · +3 layers, +64 neurons, +25 % · answers unchanged")
        runs.report(job, curve(range(31, 121)))
        await sees(pilot, "turn 1/1 · cycle 6/6")


async def test_the_layers_are_a_chart_once_they_were_scored(service: Service, runs: Runs) -> None:
    job = growing(runs)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await sees(pilot, "loss 2.6")
        tabs = app.screen.query_one(MetricTabs)
        assert "layers" not in tabs.names
        runs.tell(job, "diagnose", **DIAGNOSIS)
        await until(pilot, lambda: "layers" in tabs.names)
        tabs.active = "vram_gb"
        await pilot.press("m")
        await sees(pilot, "score on this data, 0 to 1 · ▲ 3 new layers behind 5, 8", "1.000┤", "10")
        lines = screen_text(app).split("\n")
        signs = next(line for line in lines if line.split() == ["▲", "2"])  # behind layer 8 stand two
        bottom = max(index for index, line in enumerate(lines) if "0┤" in line)
        assert [lines[bottom][signs.index(sign)] for sign in "▲2"] == ["█", "█"]
        assert lines[bottom + 1][signs.index("▲")] == "5"
        await pilot.press("m")
        await sees(pilot, "by step")


async def test_the_comparison_is_a_curve_of_its_own(service: Service, runs: Runs) -> None:
    job = growing(runs, steps=0)
    runs.aside(job, *rival(range(1, 101)))
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        app.open_run(job.id)
        await sees(pilot, "- ungrown 9.000 · ◇ ungrown eval 8.5", "step 0/120")
        assert app.view
        assert app.view.points == ()
        # The run's own steps begin at 1 again, below those that the comparison has reached.
        for phase in ("diagnose", "grow", "calibrate", "repair"):
            runs.aside(job, Point(0, phase, 700.0, loss=77.0))
        with service.store.write() as db:
            telemetry.forget_after(db, job.id, 0)
        runs.report(job, [Point(0, "eval", 1000.0, loss=5.25), *curve(range(1, 31))])
        await sees(pilot, "∙ loss 2.600", "◆ eval 5.25", "- ungrown 9.000 · ◇ ungrown eval 8.5")
        chart = app.screen.query_one(LossChart)
        await until(pilot, lambda: len(chart.points) == 31)
        runs.report(job, curve(range(31, 51)))
        await until(pilot, lambda: len(chart.points) == 51)
        assert {point.phase for point in chart.points} == {"train", "eval"}
        assert max(point.loss or 0 for point in chart.points) < 9
        assert len(app.view.aside) == 101
        assert app.overview.latest[job.id].loss == pytest.approx(chart.points[-1].loss)


def test_the_comparison_moves_neither_the_curve_nor_its_marks() -> None:
    events = [Event(1, 0.0, "spike", {"step": 5, "of": "ungrown"}), Event(2, 0.0, "cycle", {"step": 20})]
    alone, beside = (trace(curve(range(1, 31)), Look(), events, aside=aside) for aside in ((), rival(range(1, 101))))
    assert (beside.raw, beside.smoothed, beside.marks) == (alone.raw, alone.smoothed, (("cycle", 20.0),))
    assert beside.rival == ([float(step) for step in range(1, 101)], pytest.approx([9.0] * 100))
    assert alone.rival == ([], [])
    assert trace(curve(range(1, 31)), Look("lr"), aside=rival(range(1, 101))).rival == ([], [])
    tokens = trace(curve(range(1, 31)), Look(axis="tokens"), aside=rival(range(1, 101)))
    assert (tokens.raw[0][-1], tokens.rival[0][-1]) == (30 * 1024, 100 * 1024)


def test_of_many_cycles_some_are_marked_and_the_last_one_is() -> None:
    events = [Event(step, 0.0, "cycle", {"step": step}) for step in range(1, 301)]
    marks = trace(curve(range(1, 301)), Look(), events).marks
    assert CYCLES_MARKED // 2 < len(marks) <= CYCLES_MARKED
    assert marks[-1] == ("cycle", 300.0)


async def test_what_phases_did_is_told_in_words(service: Service, runs: Runs) -> None:
    job = growing(runs)
    runs.tell(job, "diagnose", **DIAGNOSIS)
    runs.tell(job, "grow", change=2.5e-6, kl=0.0, agreement=1.0)
    runs.tell(job, "cycle", turn=1, cycle=1, step=20, ppl=12.5, self_ppl=4.25)
    runs.tell(job, "early_stop", step=9, best_step=4, of="ungrown")
    runs.tell(job, "contract", layout="targeted", layers=[4, 5, 6, 9], scores=[])
    runs.tell(job, "contract", layout="depth", layers=[4], scores=[])
    runs.tell(job, "hold", why="after: waits for tune (queued)")
    runs.tell(job, "diagnose", of="another version")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        app.open_run(job.id)
        await page(pilot, "events-pane")
        await sees(
            pilot,
            "12 layers scored: grows by +3 layers, +64 neurons, +25 %, new layers behind 5, 8, 8",
            "grown: answers moved by 2.5e-06, 100.00 % of the likeliest tokens stayed",
            "turn 1, cycle 1 done at step 20: perplexity 12.50, on the original's own text 4.250",
            "comparison without growth: stopped early at step 9: the best was step 4",
            "layout targeted: layers 4–6, 9 lose neurons",
            "layout depth: layer 4 goes",
            "after: waits for tune (queued)",
            "diagnose (of another version)",
        )


async def test_a_run_without_steps_shows_its_share_and_what_it_does(service: Service, runs: Runs) -> None:
    job = contracting(runs)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "shrink", "72%", "1m35s", "pruning: 5 of 12 layers", "no layer was judged yet")
        app.open_run(job.id)
        await sees(pilot, "72% · ETA 1m35s · pruning: 5 of 12 layers", "layout uniform")
        assert "step 0/0" not in screen_text(app)
        assert "contract of starter on" not in screen_text(app)
        assert app.screen.query_one(MetricTabs).names == ("layers",)
        runs.tell(job, "contract", layout="uniform", layers=list(range(12)), scores=[])
        runs.aside(job, *(Point(layer + 1, "prune", 1.0, loss=0.01 * layer) for layer in range(5)))
        await sees(pilot, "damage: share of the MLP's output lost · every layer loses neurons", "0.040┤")
        await sees(pilot, "layout uniform · 12 layers")
        runs.move(job, "uploading", "completed")
        await sees(pilot, "✓ completed", "100%")
        await page(pilot, "checkpoints-pane")
        await sees(pilot, "This run makes no steps")


@pytest.mark.parametrize(("layout", "sign"), [("targeted", "▼"), ("depth", "✗")])
def test_layers_that_lose_something_are_marked(layout: str, sign: str) -> None:
    scores = [0.5 - 0.01 * layer for layer in range(12)]
    told = Event(1, 0.0, "contract", {"layout": layout, "layers": [4, 7], "scores": scores})
    job: Any = None
    before, after = (
        layers_of(RunView(job, events=(told,), aside=tuple(Point(layer + 1, "prune", 1.0, loss=0.1) for layer in done)))
        for done in ((), (4,))
    )
    assert before
    assert after
    assert before.values == tuple(scores)
    assert after.values == (*[None] * 4, 0.1, *[None] * 7)
    assert before.note == after.note == f"{sign} 2 of 12 layers {'go' if layout == 'depth' else 'lose neurons'}"
    numbers, signs = draw_layers(after, 78, 12).plain.split("\n")[-2:]
    assert [numbers[at] for at, one in enumerate(signs) if one == sign] == ["4", "7"]


def test_the_damage_is_told_of_the_layers_whatever_steps_came_before_theirs() -> None:
    told = Event(1, 0.0, "contract", {"layout": "uniform", "layers": [0, 1], "scores": [], "steps_after": 15})
    job: Any = None
    found = layers_of(RunView(job, events=(told,), aside=(Point(16, "prune", 1.0, loss=0.1),)))
    assert found
    assert found.values == (0.1, None)


async def test_a_chain_shows_whom_a_run_waits_for(service: Service, runs: Runs) -> None:
    first = runs.submit("finetune", "tune", dataset_id="data-1", hyperparams={"steps": 10})
    second = runs.submit("contract", "shrink", base_model_id="@tune")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await sees(pilot, "shrink ↳ tune", "after: waits for tune (queued)")
        assert "waits: after" not in screen_text(app)
        app.open_run(second.id)
        await sees(pilot, "contract of @tune", "↳ after tune", "after: waits for tune (queued)")
        runs.move(first, "failed", error="it broke")
        await sees(pilot, f"after: tune failed; retry it ({first.id[:8]}), or cancel this run")


async def test_settings_that_are_settled_while_the_run_is_shown_are_shown(service: Service, runs: Runs) -> None:
    job = runs.submit("contract", "shrink", hyperparams={"layout": "depth"})
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        app.open_run(job.id)
        await page(pilot, "config-pane")
        await sees(pilot, "layout", "depth")
        with service.store.write() as db:
            settled = {**job.hyperparams, "num_layers_to_contract": 17}
            assert jobs.resolve(db, service.job(job.id), hyperparams=settled, plan=None)
        await sees(pilot, "num_layers_to_contract  17")


GROWN: dict[str, Any] = {
    "ppl_baseline": 40.0,
    "ppl_after_growth": 40.0,
    "ppl_final": 20.0,
    "self_ppl_baseline": 4.0,
    "self_ppl_after_growth": 4.0,
    "self_ppl_final": 4.2,
    "ungrown_ppl_final": 18.0,
    "ungrown_self_ppl_final": 9.5,
    "ungrown_training_type": "full",
    "params_before": 100_000_000,
    "params_after": 125_000_000,
    "params_delta": 25_000_000,
    "blocks_added": 8,
    "neurons_added": 64,
    "function_preservation": 2.5e-6,
    "logit_kl": 1e-9,
    "argmax_agreement": 1.0,
    "gpu_seconds": 90,
}
CONTRACTED: dict[str, Any] = {
    "ppl_baseline": 10.0,
    "ppl_final": 12.0,
    "eval_ppl_baseline": 30.0,
    "eval_ppl_final": 33.0,
    "params_before": 100_000_000,
    "params_after": 75_000_000,
    "param_ratio": 0.75,
    "layout": "targeted",
    "layers": [4, 5, 6],
    "function_preservation": None,
    "healed_steps": 0,
    "gpu_seconds": 90,
}


@pytest.mark.parametrize(
    ("kind", "size", "result", "texts"),
    [
        (
            "train",
            SMALL,
            GROWN,
            (
                "40.00 → 40.00 → 20.00 (-50.0 %)",
                "on own text 4.000 → 4.000 → 4.200 (+5.0 %)",
                "trained alike (full): perplexity 18.00, on own text 9.500",
                "100M → 125M (+25.0 %)",
                "+8 layers, +64 neurons, +25 % · answers moved by 2.5e-06 · KL 1.0e-09",
            ),
        ),
        (
            "contract",
            LARGE,
            CONTRACTED,
            (
                "10.00 → 12.00 (+20.0 %) on own text",
                "on dataset 30.00 → 33.00 (+10.0 %)",
                "100M → 75.0M (-25.0 %)",
                "targeted · layers 4–6 · parameter ratio 0.750 · not healed",
                "75.0 % of the parameters left",
            ),
        ),
    ],
)
async def test_the_result_tells_what_the_change_of_shape_brought(  # noqa: PLR0917  (pytest names them)
    service: Service, runs: Runs, kind: str, size: tuple[int, int], result: dict[str, Any], texts: tuple[str, ...]
) -> None:
    job = growing(runs) if kind == "train" else contracting(runs)
    with service.store.write() as db:
        telemetry.set_result(db, job.id, result, now=1.0)
    runs.move(job, "uploading", "completed")
    app = open_app(service)
    async with app.run_test(notifications=True, size=size) as pilot:
        app.open_run(job.id)
        await page(pilot, "result-pane")
        await sees(pilot, *texts)


@given(
    values=st.lists(st.none() | st.floats(-1, 1e6), min_size=1, max_size=200),
    width=st.integers(0, 170),
    height=st.integers(0, 45),
    marked=st.sets(st.integers(0, 199), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_any_layers_are_drawn_into_any_box(
    values: list[float | None], width: int, height: int, marked: set[int]
) -> None:
    signs = {layer: "▲" for layer in marked if layer < len(values)}
    lines = draw_layers(Layers("score", tuple(values), signs), width, height).plain.split("\n")
    assert len(lines) <= max(height, 1)
    assert all(len(line) <= max(width, len("too small for a chart")) for line in lines)


@pytest.mark.parametrize("count", [2, 12, 30, 80, 126])
def test_every_layer_that_is_known_has_a_bar_in_proportion(count: int) -> None:
    drawn = draw_layers(Layers("score", tuple(layer / (count - 1) for layer in range(count)), {0: "▲"}), 78, 12).plain
    rows = drawn.split("\n")[:-2]
    heights = [sum(EIGHTHS.index(row[at]) for row in rows if at < len(row)) for at in range(LABEL, len(rows[-1]))]
    solid = [height for height in heights if height]
    together = -(-count // (78 - LABEL))
    assert len({at // together for at in range(count)}) <= len(solid) <= len(heights)
    assert solid == sorted(solid)
    assert (solid[0], solid[-1]) == (1 if count < 80 else solid[0], 8 * len(rows))


def test_what_another_version_tells_of_layers_is_left_out() -> None:
    job: Any = None
    for kind, payload in (
        ("diagnose", {}),
        ("contract", {"layout": "uniform", "layers": 3}),
        ("diagnose", {"layers": [1]}),
    ):
        assert layers_of(RunView(job, events=(Event(1, 0.0, kind, payload),))) is None


def test_numbers_are_told_in_stretches() -> None:
    assert fmt.numbers([1, 2, 4, 5, 6, 7, 9]) == "1, 2, 4–7, 9"
    assert fmt.growth(1, 0, 0.031) == "+1 layer, +3.1 %"
