"""Peaks are kept one for each job, and read back newest first by device and mode."""

from __future__ import annotations

from dataclasses import replace

from store import Store, memory_peaks
from store.memory_peaks import Peak
from tests.store.entries import new_job

PEAK = Peak(job_id="a", device="card", mode="lora/none", planned=100, measured=110, created_at=1.0)


def test_ratios_are_of_the_newest_runs_of_one_mode_on_one_device(store: Store) -> None:
    with store.write() as db:
        for number in range(7):
            memory_peaks.record(db, replace(PEAK, job_id=str(number), measured=100 + number, created_at=number))
        memory_peaks.record(db, replace(PEAK, job_id="other mode", mode="full/none", measured=500, created_at=99.0))
        memory_peaks.record(db, replace(PEAK, job_id="other card", device="cpu", measured=500, created_at=99.0))
        memory_peaks.record(db, replace(PEAK, job_id="no plan", planned=0, created_at=99.0))
    assert memory_peaks.ratios(store.read(), "card", "lora/none", newest=5) == [1.06, 1.05, 1.04, 1.03, 1.02]
    assert memory_peaks.ratios(store.read(), "card", "qlora/none", newest=5) == []


def test_of_several_attempts_the_highest_peak_is_kept(store: Store) -> None:
    with store.write() as db:
        for measured in (110, 140, 120):
            memory_peaks.record(db, replace(PEAK, measured=measured))
    assert memory_peaks.of_job(store.read(), "a") == replace(PEAK, measured=140)
    assert memory_peaks.of_job(store.read(), "b") is None


def test_what_a_run_taught_outlives_the_run(store: Store) -> None:
    from store import jobs

    with store.write() as db:
        job = new_job(db)
        memory_peaks.record(db, replace(PEAK, job_id=job.id))
        jobs.delete(db, job.id)
    assert memory_peaks.ratios(store.read(), "card", "lora/none", newest=5) == [1.1]
