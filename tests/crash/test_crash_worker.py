"""What a lost worker costs: a retry and nothing else. Real training, real supervisor, real signals."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from engine import manifest, process
from engine.service import Service
from store import attempts
from tests import worker
from tests.conditions import eventually
from tests.supervised import Supervised, Supervision, working


def losses(service: Service, job_id: str) -> list[float | None]:
    """Return the training losses in order, having checked that each step is there once."""
    points = [point for point in service.points(job_id) if point.phase == "train"]
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    return [point.loss for point in points]


def test_a_killed_worker_resumes_and_its_losses_equal_those_of_a_run_left_alone(service: Service) -> None:
    supervision = Supervision(service)
    killed, calm = supervision.submit(), supervision.submit()
    with working(service, worker.launching(worker.Fate(step=35))):
        supervision.until_finished(killed.id)
        assert supervision.until_finished(calm.id).state == "completed"
    job = supervision.job(killed.id)
    assert (job.state, job.retries, job.fence) == ("completed", 1, 2)
    resumes = [event.payload["step"] for event in service.events(job.id) if event.kind == "resume"]
    assert resumes == [30]
    first = attempts.of_job(service.store.read(), job.id)[0]
    assert (first.outcome, first.exit_code) == ("lost", -signal.SIGKILL)

    assert losses(service, killed.id) == losses(service, calm.id)
    assert len(losses(service, calm.id)) == 60
    both = [service.result(job_id) or {} for job_id in (killed.id, calm.id)]
    assert both[0]["ppl_final"] == both[1]["ppl_final"]
    assert both[0]["tokens_processed"] == both[1]["tokens_processed"]


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_used(supervised: Supervised) -> None:
    job = supervised.submit(steps=250)
    supervised.until_step(job.id, 45)
    supervised.kill()
    supervised.kill_worker(job.id)
    newest = max(supervised.service.home.attempt(job.id, 1).glob("checkpoints/step-*"))
    damaged = newest / "weights.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    supervised.start()

    assert supervised.until_finished(job.id).state == "completed"
    events = supervised.service.events(job.id)
    found = [event.payload for event in events if event.kind == "checkpoint_damaged"]
    assert len(found) == 1
    assert "weights.safetensors" in found[0]["why"]
    resumed = [event.payload["step"] for event in events if event.kind == "resume"]
    assert resumed == [int(newest.name.removeprefix("step-")) - 10]
    assert len(losses(supervised.service, job.id)) == 250


def test_a_cancelled_run_saves_its_step_and_a_retry_goes_on_from_there(service: Service) -> None:
    supervision = Supervision(service)
    job = supervision.submit(save_steps=1000)
    # It stands still at step 20 until it was told to stop, and cannot be through before that.
    with working(service, worker.launching(worker.Fate(step=20, number=signal.SIGSTOP))):
        supervision.until_step(job.id, 20)
        standing = supervision.worker(job.id)
        eventually(lambda: process.is_stopped(standing), what="the stop")
        service.cancel(job.id)
        eventually(lambda: supervision.attempt(job.id).stop_signalled_at, what="the signal")
        assert process.send(standing, signal.SIGCONT)
        stopped = supervision.until_finished(job.id)
        assert stopped.state == "cancelled"
        assert stopped.retries == 0
        assert 20 <= stopped.last_checkpoint_step <= 21

        service.retry(job.id)
        done = supervision.until_finished(job.id)
    assert (done.state, done.retries) == ("completed", 0)
    resumed = [event.payload["step"] for event in service.events(job.id) if event.kind == "resume"]
    assert resumed == [stopped.last_checkpoint_step]
    assert len(losses(service, job.id)) == 60


@pytest.mark.slow
def test_a_worker_that_is_terminated_from_outside_saves_and_the_run_goes_on(supervised: Supervised) -> None:
    job = supervised.submit(steps=250, save_steps=1000)
    supervised.until_step(job.id, 20)
    assert process.send(supervised.worker(job.id), signal.SIGTERM)
    done = supervised.until_finished(job.id)
    assert (done.state, done.retries) == ("completed", 1)
    resumed = [event.payload["step"] for event in supervised.service.events(job.id) if event.kind == "resume"]
    assert resumed[0] >= 20


def test_a_row_that_cannot_be_trained_on_fails_the_run_with_its_line(attended: Supervision, tmp_path: Path) -> None:
    bad = tmp_path / "long.jsonl"
    question = "Why? " * 200
    lines = [
        '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"hello"}]}',
        f'{{"messages":[{{"role":"user","content":"{question}"}},{{"role":"assistant","content":"yes"}}]}}',
    ]
    bad.write_text("\n".join(lines))
    attended.service.add_dataset(str(bad), "long")
    request = {"type": "finetune", "idempotency_key": "long", "base_model_id": "tiny", "dataset_id": "long"}
    job = attended.service.submit({**request, "hyperparams": {"steps": 5, "seq_len": 64}}).job
    failed = attended.until_finished(job.id)
    assert failed.state == "failed"
    assert "line 2" in (failed.error or "")
    assert "raise seq_len" in (failed.error or "")


def make_touchy(tiny_model: Path, folder: Path) -> Path:
    """Write the tiny model with numbers so far apart in its MLPs that one large update takes them beyond fp32."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        # What goes in is as much larger as the weights are smaller, so that it is the same function.
        if "post_attention_layernorm" in name:
            weights[name] *= 3e18
        elif "gate_proj" in name or "up_proj" in name:
            weights[name] /= 3e18
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_absurd_rate_fails_the_run_with_the_reason_and_keeps_the_checkpoint(
    attended: Supervision, tiny_model: Path, tmp_path: Path
) -> None:
    attended.service.add_model(str(make_touchy(tiny_model, tmp_path / "touchy")), "touchy")
    settings = {"training_type": "full", "lr": 1, "warmup_ratio": 0, "steps": 30, "seq_len": 64, "save_steps": 1}
    request = {"type": "finetune", "idempotency_key": "absurd", "base_model_id": "touchy", "dataset_id": "sums"}
    job = attended.service.submit({**request, "hyperparams": settings}).job
    failed = attended.until_finished(job.id)
    assert (failed.state, failed.retries) == ("failed", 0)
    assert "training diverged" in (failed.error or "")
    assert "Lower lr (now 0.5) and retry" in (failed.error or "")
    kinds = [event.kind for event in attended.service.events(job.id)]
    assert kinds.count("spike") == 6
    assert kinds.count("rollback") == 1
    kept = attended.service.home.attempt(job.id, 1) / "checkpoints" / "step-00000001"
    assert manifest.verify(kept).facts["step"] == failed.last_checkpoint_step == 1
    assert [checkpoint.step for checkpoint in attended.service.checkpoints(job.id)] == [1]
    # A loss that is no number is none in the store either, and can be told as JSON.
    points = [point for point in attended.service.points(job.id) if point.phase == "train"]
    assert [point.loss is None for point in points] == [False, True, True]
    json.dumps([point.loss for point in points], allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"lora_dropout": 0.1, "grad_accum": 2},
        {"load_in_4bit": True, "grad_accum": 2},
        {"training_type": "full", "optimizer": "adamw_8bit", "grad_accum": 2},
    ],
    ids=["lora", "qlora", "full"],
)
def test_killed_at_ten_random_steps_the_losses_equal_those_of_a_run_left_alone(
    supervised: Supervised, settings: dict[str, Any]
) -> None:
    killed, rng = supervised.submit(steps=500, save_steps=7, **settings), random.Random(str(settings))
    for kill, step in enumerate(sorted(rng.sample(range(10, 300), 10))):
        eventually(lambda step=step: supervised.job(killed.id).step >= step, what=f"step {step}")
        supervised.kill_worker(killed.id)
        eventually(lambda kill=kill: supervised.job(killed.id).retries == kill + 1, what="the requeue")
    assert supervised.until_finished(killed.id).state == "completed"
    calm = supervised.submit(steps=500, save_steps=7, **settings)
    assert supervised.until_finished(calm.id).state == "completed"
    assert losses(supervised.service, killed.id) == losses(supervised.service, calm.id)
    both = [supervised.service.result(job_id) or {} for job_id in (killed.id, calm.id)]
    assert both[0]["ppl_final"] == both[1]["ppl_final"]
