"""The comparison with TRL: what is seen from outside, who gets which rows, and real runs of both on a tiny model."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bench import contestants, finetune_vs_trl
from bench.watch import watch
from engine import resources

WORKS = """
import os, time
held = bytearray(os.urandom(1)) * 150_000_000
while time.process_time() < 0.5: pass
print("first"); print("last words")
raise SystemExit(3)
"""


def test_a_watched_process_is_charged_with_its_core_seconds_and_memory(tmp_path: Path) -> None:
    watched = watch([sys.executable, "-c", WORKS], folder=tmp_path, environment={})
    now = time.time()
    assert (watched.code, watched.last_words) == (3, "last words")
    assert watched.looks[-1].core_s > 0.3
    assert watched.peak_bytes(now) > 150_000_000
    a, b = watched.looks[0], watched.looks[-1]
    assert a.core_s < watched.core_seconds((a.ts + b.ts) / 2) < b.core_s


def test_rows_are_drawn_to_the_wanted_number_of_tokens_and_none_twice() -> None:
    lengths = [50 + 7 * row % 90 for row in range(400)]
    chosen, held_out = finetune_vs_trl.pick(lengths, 64, 6000)
    assert abs(sum(lengths[row] for row in chosen) - 6000) < 4
    assert len({*chosen, *held_out}) == 64 + finetune_vs_trl.HELD_OUT


@pytest.mark.slow
def test_both_train_the_same_rows_and_are_judged_alike(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    work = finetune_vs_trl.prepare(tiny_model, tmp_path, seq_len=1024, sequences=3, steps=2)
    cpu = resources.Device("cpu", "CPU", 0, 0)
    both = [one for one in contestants.contestants(cpu, work) if one.key in ("ours", "grouped")]
    outcomes = [contestants.run(one, work, tmp_path / one.key, "cpu") for one in both]
    assert [outcome.failure for outcome in outcomes] == ["", ""]
    ours, trl = outcomes
    assert trl.tokens == work.tokens
    # The trainer's own split holds out one row.
    longest = max(len(line) for line in work.rows.read_text().splitlines())
    assert 0 < work.tokens - ours.tokens < longest
    for outcome in outcomes:
        assert len(outcome.steps) == 1
        assert outcome.steps[0].tokens > 0
        assert outcome.steps[0].seconds > 0
        assert outcome.peak_bytes > 10**8
    verdict = finetune_vs_trl.judge(work, outcomes)
    assert verdict["losses"]["ours"] == pytest.approx(verdict["losses"]["grouped"], rel=0.02)
    rows = {o.key: finetune_vs_trl.summary([o], verdict, work, card=False) for o in outcomes}
    assert all(row["mfu"] > 0 for row in rows.values())
