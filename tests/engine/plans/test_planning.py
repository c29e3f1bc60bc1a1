"""Plans on this machine: stored with the job, corrected by what runs took, refused only where nothing else is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import resources
from engine.errors import InvalidRequest, UnknownReference
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.journal import JournalWriter
from engine.plans import memory, model_shape
from engine.plans.model_shape import ShapeUnknown
from engine.running.ingest import ingest
from engine.service import Service
from store import catalog, memory_peaks
from store.memory_peaks import Peak
from tests.engine import shapes
from tests.engine.conftest import request_for, start
from tests.engine.nvml import Card, Driver
from tests.store.entries import base_model

GB = 10**9


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card of 24 GB with nothing on it."""
    card = Card("RTX", total=24 * GB, used=0)
    monkeypatch.setattr(resources, "_nvml", lambda: Driver(card))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return card


@pytest.fixture
def llama(service: Service, tmp_path: Path) -> str:
    """A model in the catalogue whose folder holds no more than Llama-3-8B's config."""
    return add(service, tmp_path / "llama", shapes.LLAMA_8B)


def add(service: Service, folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with service.store.write() as db:
        catalog.add_base_model(db, base_model(name=folder.name, path=str(folder)))
    return folder.name


def ask(model: str, **hyperparams: Any) -> dict[str, Any]:
    return request_for(base_model_id=model, hyperparams=hyperparams)


def bare(**hyperparams: Any) -> memory.Plan:
    shape = model_shape.of_config(shapes.LLAMA_8B)
    return memory.plan(shape, FinetuneHyperparams(**hyperparams), "cuda", sixteen_bits=True)


def test_a_plan_says_what_is_needed_and_that_it_fits(service: Service, card: Card, llama: str) -> None:
    report = service.plan(ask(llama, seq_len=512))
    assert (report.needed, report.total, report.free) == (bare(seq_len=512).needed, 24 * GB, 24 * GB)
    assert (report.verdict, report.fits, report.alternatives, report.holders) == ("fits", True, (), ())
    assert report.summary == f"needs {report.needed / GB:.1f} GB of 24.0 GB free: fits"
    assert json.loads(json.dumps(report.document()))["parts"] == dict(report.plan.parts)


def test_what_is_taken_now_is_waited_for_by_name(service: Service, card: Card, llama: str) -> None:
    card.used, card.compute = 15 * GB, {1: 15 * GB}
    report = service.plan(ask(llama, seq_len=512))
    assert (report.verdict, report.fits) == ("waits", False)
    assert "of 9.0 GB free: waits for " in report.summary
    assert "(pid 1, 15.0 GB)" in report.summary
    # Meanwhile these would fit into what is free.
    assert report.alternatives
    assert all(alternative.needed <= 9 * GB for alternative in report.alternatives)


def test_what_could_never_fit_is_refused_with_what_would(service: Service, card: Card, llama: str) -> None:
    request = ask(llama, batch_size=4, seq_len=4096)
    for call in (service.submit, service.validate):
        with pytest.raises(InvalidRequest) as caught:
            call(request)
        (fault,) = caught.value.faults
        assert (fault.loc, fault.kind) == (("hyperparams",), "memory")
        assert "there are 24.0 GB (RTX): too large. These would fit: batch_size=1, grad_accum=4, " in str(fault)
    assert service.jobs() == []
    report = service.plan(request)
    assert report.verdict == "too_large"
    accepted = service.submit(ask(llama, **{"batch_size": 4, "seq_len": 4096, **report.alternatives[0].changes})).job
    assert accepted.plan is not None
    assert accepted.plan["needed"] == report.alternatives[0].needed


def test_where_no_setting_helps_a_smaller_model_is_advised(service: Service, card: Card, llama: str) -> None:
    card.total = 2 * GB
    with pytest.raises(InvalidRequest, match="No setting makes it fit: use a smaller model"):
        service.submit(ask(llama))


def test_the_plan_is_stored_with_the_job(service: Service, card: Card, llama: str) -> None:
    plan = service.submit(ask(llama, seq_len=512)).job.plan
    assert plan is not None
    assert plan["needed"] == plan["planned"] == bare(seq_len=512).planned
    assert (plan["device"], plan["total"], plan["mode"], plan["phase"]) == ("RTX", 24 * GB, "lora/none", "training")


def test_a_model_that_cannot_be_read_is_in_nobodys_way(service: Service, card: Card, tmp_path: Path) -> None:
    strange = add(service, tmp_path / "strange", {"model_type": "mamba"})
    for model in (strange, "tiny"):
        assert service.submit(ask(model)).job.plan is None
        with pytest.raises(ShapeUnknown, match=r"config\.json"):
            service.plan(ask(model))


def test_a_driver_that_does_not_answer_is_in_nobodys_way(
    service: Service, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_nvml", lambda: Driver("a", lost=True))
    assert service.submit(ask(llama)).job.plan is None


def test_a_card_that_does_not_tell_its_memory_refuses_nothing(
    service: Service, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_nvml", lambda: Driver("a", tells_memory=False))
    report = service.plan(ask(llama, training_type="full"))
    assert (report.verdict, report.fits) == ("unknown", True)
    assert service.submit(ask(llama, training_type="full")).job.plan is not None


def test_of_several_cards_the_largest_decides(
    service: Service, card: Card, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_nvml", lambda: Driver(card, Card("H100", total=80 * GB, used=0), card))
    assert service.plan(ask(llama)).device == "H100"


def test_a_folder_with_a_config_alone_can_be_planned_for_any_card(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 120) / ("b" * 120)  # longer than a name in a request can be
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shapes.LLAMA_8B))
    request = {"type": "finetune", "base_model_id": str(folder), "hyperparams": {"seq_len": 512}}
    report = service.plan(request, card_gb=24)
    assert (report.needed, report.free, report.fits) == (bare(seq_len=512).needed, 24 * GB, True)
    assert service.plan(request, card_gb=8).verdict == "too_large"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"base_model_id": "nonesuch"}, UnknownReference),
        ({"base_model_id": "~nobody/model"}, UnknownReference),
        ({"base_model_id": "x" * 5000}, InvalidRequest),
        ({"base_model_id": "a\0b"}, UnknownReference),
        ({"base_model_id": 5}, InvalidRequest),
        ({"base_model_id": None}, InvalidRequest),
        ({"dataset_id": "nonesuch"}, UnknownReference),
        ({"dataset_id": "starter", "more_dataset_ids": ["nonesuch"]}, UnknownReference),
        ({"hyperparams": {"seq_len": 0}}, InvalidRequest),
    ],
)
def test_a_wrong_request_is_told_as_submit_tells_it(service: Service, change: dict[str, Any], error: type) -> None:
    with pytest.raises(error):
        service.plan({**request_for(), **change})


def peak(service: Service, number: int, ratio: float, mode: str = "lora/none", device: str = "RTX") -> None:
    with service.store.write() as db:
        row = Peak(f"job-{number}", device, mode, 10**9, round(ratio * 10**9), float(number))
        memory_peaks.record(db, row)


def test_the_median_of_the_last_five_peaks_corrects_the_next_plan(service: Service, card: Card, llama: str) -> None:
    asked = ask(llama, seq_len=512)
    planned = service.plan(asked).plan.planned
    assert service.plan(asked).correction == ""
    for number, ratio in enumerate((9.0, 9.0, 1.01, 1.07, 1.2, 1.05, 1.1)):
        peak(service, number, ratio)
    peak(service, 99, 0.5, mode="full/none")
    peak(service, 99, 0.5, device="another card")
    report = service.plan(asked)
    assert report.needed == round(planned * 1.07)
    assert report.correction == "corrected ×1.07 from 5 runs here"
    job = service.submit(asked).job
    assert job.plan is not None
    assert (job.plan["needed"], job.plan["planned"]) == (report.needed, planned)
    # A card that is not here has taught nothing.
    assert service.plan(asked, card_gb=24).plan.runs == 0


def test_a_workers_peak_becomes_a_correction_and_part_of_the_result(service: Service, card: Card, llama: str) -> None:
    job = service.submit(ask(llama, seq_len=512)).job
    assert job.plan is not None
    attempt = start(service, job.id)
    measured = round(job.plan["planned"] * 1.1)
    writer = JournalWriter(Path(attempt.directory) / "journal.jsonl", attempt.fence, clock=lambda: 50.0)
    writer.append("memory", {"peak_bytes": measured, "phase": "training"})
    writer.append("result", {"loss_final": 1.0, "gpu_seconds": 1.0})
    writer.close()
    ingest(service.store, attempt)
    result = service.result(job.id) or {}
    assert (result["memory_planned_bytes"], result["memory_measured_bytes"]) == (job.plan["needed"], measured)
    (event,) = (event for event in service.events(job.id) if event.kind == "memory")
    assert event.payload == {"peak_bytes": measured, "phase": "training", "planned_bytes": job.plan["needed"]}
    assert service.plan(ask(llama, seq_len=512)).needed == pytest.approx(measured, abs=1)


def test_a_run_without_a_plan_tells_its_peak_all_the_same(service: Service) -> None:
    job = service.submit(ask("tiny")).job
    attempt = start(service, job.id)
    writer = JournalWriter(Path(attempt.directory) / "journal.jsonl", attempt.fence, clock=lambda: 50.0)
    writer.append("memory", {"peak_bytes": 5, "phase": "loading"})
    writer.append("result", {"gpu_seconds": 1.0})
    writer.close()
    ingest(service.store, attempt)
    assert [event.payload["peak_bytes"] for event in service.events(job.id) if event.kind == "memory"] == [5]
    assert (service.result(job.id) or {})["memory_measured_bytes"] is None
