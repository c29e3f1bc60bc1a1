"""Long curves over HTTP: thinned, whole, newer than a step, and as the model says."""

from __future__ import annotations

import json
import math

import pytest

from engine.service import Thinned
from fusion_tui.api.fusion import answers, metrics
from store import telemetry
from store.telemetry import Point


def curve(count: int, spike: int) -> list[Point]:
    losses = [9.0 if step == spike else math.sin(step / 50) for step in range(1, count + 1)]
    return [Point(step, "train", 1e9 + step, loss=loss) for step, loss in enumerate(losses, start=1)]


def test_a_curve_is_thinned_with_its_spike_and_its_ends(http, service, job_id):
    with service.store.write() as db:
        telemetry.add_points(db, job_id, 0, curve(500, spike=333))
    whole = http.get(f"/jobs/{job_id}/metrics").json()
    thin = http.get(f"/jobs/{job_id}/metrics?max_points=50").json()
    assert (thin["count"], thin["latest_step"]) == (len(thin["points"]), 500)
    assert 30 <= thin["count"] <= 50
    assert {1, 333, 500} <= {point["step"] for point in thin["points"]}
    assert all(point in whole["points"] for point in thin["points"])
    assert http.get(f"/jobs/{job_id}/metrics?max_points=500").json() == whole
    newer = http.get(f"/jobs/{job_id}/metrics?max_points=20&since_step=400").json()
    assert newer["points"][0]["step"] == 401
    assert newer["points"][-1]["step"] == 500
    assert newer["count"] <= 20


@pytest.mark.parametrize("wrong", ["1", "0", "-5", "100001", "x"])
def test_a_number_of_points_out_of_range_is_refused(http, job_id, wrong):
    answer = http.get(f"/jobs/{job_id}/metrics?max_points={wrong}")
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", "max_points"])


def test_an_unknown_job_has_no_thinned_curve(http):
    assert http.get("/jobs/00000000-0000-0000-0000-0000000000fe/metrics?max_points=9").status_code == 404


def test_what_is_written_quickly_is_what_the_model_says():
    points = [*curve(3, spike=2), Point(4, "train", 1e9, loss=math.inf, lr=math.nan, tokens=5, cycle=2)]
    slowly = answers.Metrics.of("job", points, 9).model_dump_json()
    assert json.loads(metrics.written_points("job", Thinned(tuple(points), 9))) == json.loads(slowly)
    assert json.loads(metrics.written_points("job", Thinned((), 9)))["latest_step"] == 9
