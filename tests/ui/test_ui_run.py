"""One run's screen: chart, log, events, result, and what a resume does to the curve."""

from __future__ import annotations

import json
import re

import pytest

from engine.service import Point, Service
from fusion_tui.screens.run import RunScreen
from fusion_tui.widgets.loss_chart import LossChart
from store import jobs, memory_peaks, telemetry
from tests.ui.driving import LARGE, SMALL, Runs, curve, open_app, screen_text, sees, until

SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "160x45"])


@SIZES
async def test_the_header_says_where_the_run_is(service: Service, runs: Runs, size: tuple[int, int]) -> None:
    job = runs.start()
    app = open_app(service)
    async with app.run_test(notifications=True, size=size) as pilot:
        app.open_run(job.id)
        await sees(pilot, "● running", "a-run", "finetune of starter", "step 40/400", "10%", "ETA 6m00s", "375 tok/s")


@SIZES
async def test_the_curve_grows_and_is_the_same_after_reopening(
    service: Service, runs: Runs, size: tuple[int, int]
) -> None:
    job = runs.start()
    pictures = []
    for opening in range(2):
        app = open_app(service)
        async with app.run_test(notifications=True, size=size) as pilot:
            app.open_run(job.id)
            await until(pilot, lambda app=app: isinstance(app.screen, RunScreen) and app.screen.query(LossChart))
            chart = app.screen.query_one(LossChart)
            if opening == 0:
                await until(pilot, lambda chart=chart: len(chart.points) == 41)
                before = screen_text(app)
                runs.report(job, curve(range(41, 201)))
                await until(pilot, lambda app=app, before=before: screen_text(app) != before)
            await sees(pilot, "loss 1.364", "step 200/400", "50%")
            await until(pilot, lambda chart=chart: len(chart.points) == 201 and chart.is_current)
            pictures.append(str(chart.content))
    assert pictures[0] == pictures[1]


async def test_a_resume_replaces_the_curve(service: Service, runs: Runs) -> None:
    job = runs.start(steps=60)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await until(pilot, lambda: app.view and len(app.view.points) == 61)
        again = curve(range(31, 81), height=8.0)
        runs.resume(job, 30, again)
        await until(pilot, lambda: app.view and app.view.points[-1].step == 80)
        assert app.view
        assert list(app.view.points) == service.points(job.id)
        assert app.view.points[-50:] == tuple(again)
        await sees(pilot, "1 retry")
        assert isinstance(app.screen, RunScreen)
        app.screen.query_one("ContentTabs").focus()
        await pilot.press("right", "right")
        await sees(pilot, "resumed (step 30)")


async def test_an_evaluation_of_a_step_already_seen_is_not_lost(service: Service, runs: Runs) -> None:
    job = runs.start(steps=50)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await until(pilot, lambda: app.view and app.view.points[-1].step == 50)
        runs.report(job, [Point(50, "eval", 1100.0, loss=2.125)])
        await sees(pilot, "eval 2.125")
        runs.report(job, curve([51]))
        await until(pilot, lambda: app.view and app.view.points[-1].step == 51)
        assert app.view
        assert list(app.view.points) == service.points(job.id)


async def test_keys_change_the_look_of_the_chart(service: Service, runs: Runs) -> None:
    job = runs.start()
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await sees(pilot, "smoothed 0.9: 2.604", "by step")
        await pilot.press("x")
        await sees(pilot, "by tokens")
        await pilot.press("x")
        await sees(pilot, "by time")
        await pilot.press("x", "y", "plus")
        await sees(pilot, "smoothed 0.95:", "by step, log y")
        await pilot.press("minus", "minus")
        await sees(pilot, "smoothed 0.8:")
        await pilot.press("0")
        await until(pilot, lambda: "smoothed" not in screen_text(app))
        for caption in ("lr 2.00e-04", "grad norm 1.000", "tok/s 375.0", "memory GB 5.500", "loss 2.333"):
            await pilot.press("m")
            await sees(pilot, caption)


async def test_hostile_log_lines_are_shown_as_text(service: Service, runs: Runs) -> None:
    job = runs.start()
    runs.log(job, "\x1b[2J\x1b]0;title\x07[bold]not bold[/bold] [@click=app.quit]x[/]", "caf\u009bé \x08done")
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        app.open_run(job.id)
        await sees(pilot, "[bold]not bold[/bold] [@click=app.quit]x[/]", "done")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", screen_text(app))
        assert "title" not in screen_text(app)


async def test_the_log_follows_until_told_to_stay(service: Service, runs: Runs) -> None:
    job = runs.start()
    runs.log(job, *(f"line {n}" for n in range(100)))
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await sees(pilot, "Charts")
        await pilot.press("right")
        await sees(pilot, "line 99")
        runs.log(job, "a newer line")
        await sees(pilot, "a newer line")
        await pilot.press("f")
        await sees(pilot, "stands still")
        runs.log(job, *(f"late {n}" for n in range(50)))
        await until(pilot, lambda: app.view and len(app.view.logs) == 151)
        assert "late 49" not in screen_text(app)
        await pilot.press("f")
        await sees(pilot, "late 49")


async def test_the_result_says_what_the_run_brought(service: Service, runs: Runs) -> None:
    job = runs.start()
    body = {
        "ppl_baseline": 446.1,
        "ppl_final": 12.3,
        "ppl_delta_pct": -97.24,
        "params_before": 135e6,
        "gpu_seconds": 90,
    }
    with service.store.write() as db:
        telemetry.set_result(db, job.id, body, now=1.0)
        for state in ("uploading", "completed"):
            jobs.transition(db, job.id, state, fence=0, now=2.0)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await sees(pilot, "✓ completed", "100%")
        await pilot.press("right", "right")
        await sees(pilot, "uploading → completed", "submitted, queued")
        await pilot.press("right")
        await sees(pilot, "seq_len", "1024", job.id)
        await pilot.press("right")
        await sees(pilot, "446.1 → 12.30  (-97.2 %)", "135M", "1m30s")
        await pilot.press("right")
        await sees(pilot, "No checkpoint yet")


def happen(service: Service, job_id: str, *events: tuple[str, dict[str, object]]) -> None:
    """Ingest events as a worker reports them."""
    with service.store.write() as db:
        for kind, payload in events:
            jobs.add_event(db, job_id, kind, payload, now=1.0)


RUNG = "batch_size 1, gradient_checkpointing none"
EVENTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("oom", {"step": 3, "rung": RUNG, "batch_size": 1, "grad_accum": 2, "gradient_checkpointing": "none"}),
    ("spike", {"step": 70, "loss": 9.25, "grad_norm": 31.5, "why": "spike"}),
    ("spike", {"step": 90, "loss": "nan", "grad_norm": "inf", "why": "nan"}),
    ("rollback", {"step": 80, "lr_scale": 0.5}),
    ("early_stop", {"step": 120, "best_step": 100}),
    ("memory", {"peak_bytes": 5_600_000_000, "phase": "training", "planned_bytes": 5_900_000_000}),
    ("advice", {"text": "lr 0.01 is 7.1 times the recommended 0.0014; safe is 4.7e-04 to 2.8e-03"}),
)


@SIZES
async def test_what_happened_is_marked_on_the_chart_with_a_legend(
    service: Service, runs: Runs, size: tuple[int, int]
) -> None:
    job = runs.start(steps=120)
    app = open_app(service)
    async with app.run_test(notifications=True, size=size) as pilot:
        app.open_run(job.id)
        await sees(pilot, "◆ eval 5.25")
        assert not any(sign in screen_text(app) for sign in "▼✗↓■")
        happen(service, job.id, *EVENTS)
        runs.resume(job, 100, curve(range(101, 121)))
        await sees(pilot, "↻ resumed · ▼ out of memory · ✗ 2 skipped · ↓ lr halved · ■ stopped early")
        lines = screen_text(app).split("\n")
        top = lines[next(row for row, line in enumerate(lines) if "by step" in line) + 1]
        assert [sign for sign in top if sign in "▼✗↓■↻"] == ["▼", "✗", "↓", "✗", "↻", "■"]


async def test_events_are_told_in_words(service: Service, runs: Runs) -> None:
    job = runs.start(steps=120)
    happen(service, job.id, *EVENTS, ("spike", {"other": "worker"}))
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        app.open_run(job.id)
        await sees(pilot, "Charts")
        await pilot.press("right", "right")
        await sees(
            pilot,
            f"out of memory at step 3: going on with {RUNG}, grad_accum 2",
            "step 70 skipped: loss 9.250, grad norm 31.50 stands out from the last steps",
            "step 90 skipped: loss nan, grad norm inf is no number",
            "back to step 80 with 0.5 of the learning rate",
            "stopped early at step 120: the best was step 100",
            "took at most 5.6 GB of memory (training, planned 5.9 GB)",
            "lr 0.01 is 7.1 times the recommended 0.0014",
            "spike (other worker)",
        )


async def test_the_result_page_compares_plan_and_measure_and_splits_a_step(service: Service, runs: Runs) -> None:
    job = runs.start(steps=10)
    timed = [
        point._replace(step_s=0.5, data_s=0.01, forward_s=0.15, backward_s=0.3, optimizer_s=0.04, save_s=0.02)
        for point in curve(range(11, 21))
    ]
    runs.report(job, timed)
    with service.store.write() as db:
        jobs.update(db, job.id, plan=json.dumps({"needed": 5_900_000_000}))
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await sees(pilot, "Charts")
        await pilot.press("right", "right", "right", "right")
        await sees(pilot, "The result comes with the run's end.", "planned 5.9 GB, so far 5.5 GB")
        await sees(pilot, "0.5 s · data 2% · forward 30% · backward 60% · optimizer 8% · and 0.02 s to save")
        body = {"ppl_baseline": 4.0, "ppl_final": 3.0, "rows_trained": 1900, "rows_held_out": 100}
        with service.store.write() as db:
            telemetry.set_result(db, job.id, {**body, "truncated_rows": 7, "dropped_rows": 0}, now=1.0)
            memory_peaks.record(db, memory_peaks.Peak(job.id, "CPU", "lora/none", 5, 5_700_000_000, 1.0))
        runs.move(job, "uploading", "completed")
        await sees(pilot, "1,900 trained on, 100 held out, 7 cut short, 0 left out")
        await sees(pilot, "planned 5.9 GB, measured 5.7 GB")


async def test_the_screen_of_a_deleted_run_closes(service: Service, runs: Runs) -> None:
    job = runs.move(runs.queue(), "failed", error="it broke")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        app.open_run(job.id)
        await sees(pilot, "it broke")
        await pilot.press("D", "y")
        await until(pilot, lambda: not isinstance(app.screen, RunScreen))
        await sees(pilot, "No runs yet")


async def test_any_size_is_survived(service: Service, runs: Runs) -> None:
    job = runs.start()
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        for screen in ("runs", "run"):
            if screen == "run":
                app.open_run(job.id)
            for size in ((20, 6), (1, 1), (300, 80), (80, 24)):
                await pilot.resize_terminal(*size)
                await pilot.pause()
        await sees(pilot, "step 40/400")
