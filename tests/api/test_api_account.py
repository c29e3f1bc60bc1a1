"""What runs took: usage by UTC day, the overview, and the price of a job that is not submitted yet."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from engine import resources
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui.api.server import ApiServer
from store import attempts, catalog, jobs, states, telemetry
from store.telemetry import Point
from tests.api.conftest import BASE, DATA

DAY = 86_400.0
NOW = 20_000 * DAY + 36_000.0  # ten in the morning
HOUR = 3600.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(Home(tmp_path / "data"), config=Settings(usd_per_gpu_hour=2.0), clock=lambda: NOW)
    with service.store.write() as db:
        catalog.add_base_model(db, BASE)
        catalog.add_dataset(db, DATA)
    yield service
    service.close()


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    server = ApiServer(service, "127.0.0.1", 0)
    server.start()
    headers = {"X-API-Key": service.token()}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=30) as client:
        yield client
    server.stop()


Ran = Callable[..., str]


@pytest.fixture
def ran(service: Service) -> Ran:
    """Make a job that was submitted at a time, with workers from and to, and a result or telemetry.

    Each worker last spoke at its end, or as `heard` says.
    """

    def make(
        at: float,
        *workers: tuple[float, float | None],
        tokens: int = 0,
        result: bool = False,
        heard: float | None = -1.0,
        outcome: str = "lost",
        **columns: object,
    ) -> str:
        job_id = str(uuid.uuid4())
        with service.store.write() as db:
            values: dict[str, object] = {
                **{"id": job_id, "type": "finetune", "name": job_id, "idempotency_key": job_id, "payload_hash": "x"},
                **{"hyperparams": {}, "base_model_id": BASE.id, "source_model_id": None, "dataset_id": DATA.id},
                **{"tags": [], "notes": "", "total_steps": 10, "now": at},
            }
            jobs.insert(db, **(values | columns))
            for fence, (begun, ended) in enumerate(workers, start=1):
                db.conn.execute("UPDATE jobs SET started_at = ?, fence = ? WHERE id = ?", [begun, fence, job_id])
                attempts.begin(db, job_id, fence, device="cpu", directory="/d", start_step=0, now=begun)
                attempts.update(db, job_id, fence, gate_opened=1, heard_at=ended if heard == -1.0 else heard)
                if ended is not None:
                    attempts.close(db, job_id, fence, outcome=outcome, detail=None, now=ended)
            last = (workers or ((at, None),))[-1]
            if result:
                told = {"tokens_processed": tokens, "gpu_seconds": (last[1] or NOW) - last[0]}
                telemetry.set_result(db, job_id, told, now=last[1] or NOW)
            elif tokens:
                point = Point(5, "train", last[1] or NOW, loss=1.0, tokens=tokens)
                telemetry.add_points(db, job_id, 1, [point._replace(step=4, tokens=1), point])
        return job_id

    return make


def test_an_empty_store_has_a_bucket_of_zeros_for_every_day(http):
    usage = http.get("/usage").json()
    assert set(usage) == {
        *("period_days", "unit", "total_gpu_minutes", "total_tokens", "total_cost_usd", "total_jobs", "buckets")
    }
    assert (usage["period_days"], usage["unit"], len(usage["buckets"])) == (14, "gpu_minutes", 14)
    assert usage["buckets"][-1] == {"date": "2024-10-04", "gpu_minutes": 0, "tokens": 0, "cost_usd": 0, "jobs": 0}
    assert usage["buckets"][0]["date"] == "2024-09-21"
    assert (usage["total_gpu_minutes"], usage["total_tokens"], usage["total_cost_usd"]) == (0, 0, 0)


def test_time_tokens_cost_and_jobs_fall_on_their_days(http, ran):
    midnight = 20_000 * DAY
    # Over midnight, with a second worker; done this morning.
    ran(
        midnight - 3 * HOUR,
        (midnight - HOUR, midnight + HOUR / 2),
        (midnight + HOUR, midnight + 2 * HOUR),
        tokens=500,
        result=True,
    )
    ran(NOW - HOUR, (NOW - HOUR, None), tokens=70)  # under way
    ran(midnight - 40 * DAY, (midnight - 40 * DAY, midnight - 39 * DAY), tokens=9, result=True)  # long ago
    ran(NOW)  # queued
    usage = http.get("/usage?days=2").json()
    yesterday, today = usage["buckets"]
    assert yesterday == {"date": "2024-10-03", "gpu_minutes": 60, "tokens": 0, "cost_usd": 2.0, "jobs": 1}
    assert today == {"date": "2024-10-04", "gpu_minutes": 150, "tokens": 570, "cost_usd": 5.0, "jobs": 2}
    assert (usage["total_gpu_minutes"], usage["total_tokens"], usage["total_jobs"]) == (210, 570, 3)
    assert usage["total_cost_usd"] == 7.0
    whole = http.get("/api/usage?days=366").json()
    assert (whole["total_gpu_minutes"], whole["total_tokens"]) == (210 + 24 * 60, 579)


def test_a_machine_that_was_off_costs_nothing_until_the_dead_worker_is_found(http, ran):
    friday = NOW - 60 * HOUR

    def minutes() -> float:
        return float(http.get("/usage?days=7").json()["total_gpu_minutes"])

    ran(friday, (friday, NOW), heard=friday + HOUR)
    assert minutes() == 60
    ran(friday, (friday, NOW), heard=friday + HOUR, outcome="cancelled")  # stopped before it was found
    assert minutes() == 120
    ran(friday, (friday, NOW), heard=None)  # it never said a word
    assert minutes() == 120
    ran(NOW - HOUR, (NOW - HOUR, NOW - HOUR / 2), heard=NOW)  # the clock was set
    assert minutes() == 150
    ran(friday, (friday, friday + HOUR), heard=None, outcome="completed")  # of a store that did not keep it
    assert minutes() == 210
    assert http.get("/usage?days=1").json()["total_gpu_minutes"] == 30


def test_what_a_deleted_job_took_is_gone(http, service, ran):
    job_id = ran(NOW - HOUR, (NOW - HOUR, NOW), tokens=5, result=True)
    assert http.get("/usage?days=1").json()["total_gpu_minutes"] == 60
    with service.store.write() as db:
        jobs.delete(db, job_id)
    assert http.get("/usage?days=1").json()["total_gpu_minutes"] == 0


def test_the_overview_counts_what_there_is(http, service, ran):
    working = ran(NOW - HOUR, (NOW - HOUR, None), tokens=70)
    with service.store.write() as db:
        jobs.transition(db, working, states.PROVISIONING, fence=1, now=NOW)
    ran(NOW)
    datasets = len(http.get("/datasets").json())
    assert http.get("/overview").json() == {
        **{"active_runs": 1, "models": 0, "datasets": datasets, "gpu_minutes_period": 60, "tokens_period": 70},
        **{"spend_usd_period": 2.0, "period_days": 30},
    }


def test_days_out_of_range_are_refused(http):
    for path in ("/usage", "/overview"):
        for days in ("0", "367", "-1", "x", "1.5"):
            answer = http.get(f"{path}?days={days}")
            assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", "days"])


def test_only_a_key_with_billing_sees_costs(http, service):
    narrow = service.make_key("narrow", ["read", "train", "datasets", "models"]).secret
    headers = {"X-API-Key": narrow}
    for path in ("/usage", "/overview"):
        assert http.get(path, headers=headers).status_code == 403
    assert http.post("/pricing/estimate", json={}, headers=headers).status_code == 403


def price(http: httpx.Client, **fields: object) -> dict:
    request = {"type": "finetune", "base_model_id": BASE.id, "dataset_id": DATA.id, "hyperparams": {"steps": 100}}
    answer = http.post("/pricing/estimate", json={**request, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_price_is_null_and_says_why_until_something_was_measured_here(http, ran):
    ran(NOW, (NOW - 10, NOW), tokens=5, result=True, plan={"device": "another card"})
    found = price(http)
    assert set(found) == {"type", "tokens", "gpu_hours", "usd_per_gpu_hour", "cost_usd", "basis"}
    assert (found["type"], found["tokens"], found["gpu_hours"], found["cost_usd"]) == ("finetune", 102_400, None, None)
    assert found["usd_per_gpu_hour"] == 2.0
    assert "no finetune jobs on" in found["basis"]


def test_a_price_comes_from_earlier_runs_of_the_model_or_of_others_by_their_size(http, service, ran):
    here = {"device": resources.devices()[0].label}
    bigger = "00000000-0000-0000-0000-0000000000aa"
    with service.store.write() as db:
        values = vars(BASE) | {"id": bigger, "name": "bigger", "params": 2 * BASE.params}
        catalog.add_base_model(db, catalog.BaseModel(**values))
    ran(NOW, (NOW - 100, NOW), tokens=1024, result=True, plan=here, base_model_id=bigger)
    scaled = price(http)
    assert scaled["gpu_hours"] == pytest.approx(102_400 / 20.48 / 3600)
    assert "scaled" in scaled["basis"]
    ran(NOW, (NOW - 100, NOW), tokens=2048_00, result=True, plan=here)
    own = price(http)
    assert own["gpu_hours"] == pytest.approx(50 / 3600)
    assert own["cost_usd"] == pytest.approx(100 / 3600, abs=1e-6)
    assert "of this model" in own["basis"]
    train = price(http, type="train", hyperparams={"cycles": 1, "steps_per_cycle": 10, "seq_len": 256})
    assert (train["tokens"], train["gpu_hours"]) == (2560, None)


def test_a_price_of_what_can_be_no_job_is_refused_as_a_submit_is(http):
    answer = http.post(
        "/pricing/estimate",
        json={"type": "finetune", "base_model_id": BASE.id, "dataset_id": DATA.id, "hyperparams": {"stps": 1}},
    )
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "hyperparams", "stps"])
    unknown = http.post("/pricing/estimate", json={"type": "finetune", "base_model_id": "none", "dataset_id": DATA.id})
    assert unknown.status_code == 400
    assert http.get("/jobs").json() == []
