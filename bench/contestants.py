"""Who is compared by bench.finetune_vs_trl, what each is given, and how one run of each is carried out and measured.

The rule: all get the same rows, LoRA, learning rate, loss, steps and threads; what else a contestant sets is his own,
and stands in `contestants`.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.watch import Watched, watch
from engine import journal, process, resources
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.order import GATE, JOURNAL, Order

ROOT = Path(__file__).parents[1]
LR, SEED, RANK, ALPHA = 2e-4, 0, 32, 32
TRL_BATCH = 8  # SFTConfig's own per_device_train_batch_size


@dataclass(frozen=True)
class Work:
    """What every contestant is given. A step of ours is `sequences` packs of `seq_len` tokens; one that does not pack
    takes `micro_batches` times 8 rows a step, which are as many tokens within a few percent."""

    model: Path
    rows: Path
    held_out: Path
    seq_len: int
    sequences: int
    steps: int
    micro_batches: int
    row_count: int
    tokens: int
    attended: float  # tokens in the row of an average token, which is what attention has to look at


@dataclass(frozen=True)
class Contestant:
    """Who trains; `settings` are SFTConfig's beyond the shared ones, None for this project's trainer."""

    key: str
    name: str
    settings: dict[str, Any] | None = None
    unsloth: bool = False
    once: bool = False  # in the first round only: too slow for more


@dataclass(frozen=True)
class Step:
    """One optimiser step after the warm-up: tokens without padding, wall-clock and core seconds."""

    tokens: int
    seconds: float
    core_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What one run showed. `peak_bytes` is main memory until the last step's end; `first_step_s` counts from the
    process's start to the end of the first optimiser step."""

    key: str
    steps: list[Step] = field(default_factory=list)
    tokens: int = 0
    first_step_s: float = 0.0
    peak_bytes: int = 0
    vram_bytes: int = 0
    adapter: str = ""
    failure: str = ""


def contestants(device: resources.Device, work: Work) -> Iterator[Contestant]:
    """Yield who is to be compared on this device, ours first."""
    card, rows = device.type == "cuda", {"gradient_accumulation_steps": work.micro_batches}
    packs = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": work.sequences}
    # Without use_cpu its default of bf16 does not start on a CPU.
    base: dict[str, Any] = {} if card else {"use_cpu": True}
    slow16 = not resources.multiplies_in_16_bits(device.type)
    same = {**base, "bf16": False} if slow16 else base
    precision = "fp32" if slow16 else "bf16"
    fast: dict[str, Any] = {**same, "gradient_checkpointing": False}
    if card:
        fast["model_init_kwargs"] = {"dtype": "bfloat16"}
        if find_spec("flash_attn"):
            fast["model_init_kwargs"]["attn_implementation"] = "flash_attention_2"
    yield Contestant("ours", "fusion-tui")
    yield Contestant("trl", f"TRL, defaults, {precision}", {**same, **rows})
    yield Contestant("packed", f"TRL, best packing, {precision}", {**fast, **packs, "packing": True})
    grouped = {"train_sampling_strategy": "group_by_length"}
    yield Contestant("grouped", f"TRL, grouped by length, {precision}", {**fast, **rows, **grouped})
    at_once = {"per_device_train_batch_size": min(work.sequences, TRL_BATCH), "packing": True}
    at_once["gradient_accumulation_steps"] = max(1, work.sequences // TRL_BATCH)
    yield Contestant("packing", f"TRL, packing=True, {precision}", {**same, **at_once}, once=not card)
    if slow16:
        # One step of one batch: a full one takes minutes where a CPU has no bf16 instructions.
        yield Contestant("bf16", "TRL, defaults as they are (bf16)", {**base, "max_steps": 1}, once=True)
    if find_spec("unsloth"):
        yield Contestant("unsloth", "Unsloth", {**packs, "packing": True}, unsloth=True)


def our_order(model: Path, rows: Path, folder: Path, *, device: str, steps: int, seq_len: int, sequences: int) -> Order:
    """Return an order with the project's defaults beside what all contestants share."""
    settings = FinetuneHyperparams.model_validate(
        {
            "steps": steps,
            "seq_len": seq_len,
            "grad_accum": sequences,
            "lr": LR,
            "lr_scheduler": "constant",
            "warmup_ratio": 0.0,
            "lora_rank": RANK,
            "lora_alpha": float(ALPHA),
            "loss_on": "all",
            "seed": SEED,
            "val_fraction": 1e-6,  # one row is the least that the trainer holds out
        }
    )
    return Order(
        job_id="bench",
        fence=1,
        type="finetune",
        device=device,
        hyperparams=settings.model_dump(),
        model_id="model",
        model_name="model",
        model_path=str(model),
        dataset_name="rows",
        dataset_path=str(rows),
        dataset_sha256="",
        output_id="output",
        output_name="output",
        output_path=str(folder / "output"),
        checkpoint_roots=(str(folder / "checkpoints"),),
    )


def run_ours(work: Work, folder: Path, device: str) -> tuple[Watched, list[tuple[float, int]], int]:
    """Have the worker carry out an order; return how it went, the steps' ends and the card's peak."""
    order = our_order(
        work.model,
        work.rows,
        folder,
        device=device,
        steps=work.steps,
        seq_len=work.seq_len,
        sequences=work.sequences,
    )
    order.write(folder)
    (folder / GATE).touch()
    argv = [sys.executable, "-m", "engine.trainer", str(folder)]
    watched = watch(argv, folder=folder, environment=process.training_environment())
    records = journal.read(folder / JOURNAL, 0).records
    points = [record.data for record in records if record.kind == "point" and record.data["phase"] == "train"]
    ended = [record.data for record in records if record.kind == "end"]
    if not ended or ended[0]["outcome"] != "completed":
        said = f"{ended[0]['outcome']}, {ended[0]['error']}" if ended else watched.last_words
        sys.exit(f"The worker did not finish: {said}")
    vram = max(int(point["vram_gb"] * 1e9) for point in points) if device.startswith("cuda") else 0
    return watched, [(point["ts"], point["tokens"]) for point in points], vram


def run_trl(contestant: Contestant, work: Work, folder: Path) -> tuple[Watched, list[tuple[float, int]], int]:
    """Run one SFTTrainer; return how it went, the steps' ends and the card's peak."""
    settings = {
        "max_steps": work.steps,
        "max_length": work.seq_len,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "seed": SEED,
        "save_strategy": "no",
        "report_to": "none",
        **(contestant.settings or {}),
    }
    lora = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    asked = {
        "unsloth": contestant.unsloth,
        "model": str(work.model),
        "rows": str(work.rows),
        "settings": settings,
        "lora": lora,
    }
    (folder / "contestant.json").write_text(json.dumps(asked))
    # The same threads as ours; the rest of our workers' environment is part of what is compared.
    alike = {name: process.training_environment()[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "bench.trl_sft", str(folder)]
    watched = watch(argv, folder=folder, environment={**alike, **offline})
    seen = folder / "steps.jsonl"
    points = [json.loads(line) for line in seen.read_text().splitlines()] if seen.exists() else []
    ends = [(point["ts"], point["tokens"]) for point in points]
    if len(ends) > 2:
        del ends[0]  # when training began, which counts where there is one step alone
    return watched, ends, max((point["vram_bytes"] for point in points), default=0)


def run(contestant: Contestant, work: Work, folder: Path, device: str) -> Outcome:
    """Run one contestant in `folder` and return what it showed."""
    folder.mkdir()
    if contestant.settings is None:
        watched, ends, vram = run_ours(work, folder, device)
        adapter = folder / "output" / "adapter"
    else:
        watched, ends, vram = run_trl(contestant, work, folder)
        adapter = folder / "adapter"
    if watched.code or len(ends) < 2:
        return Outcome(contestant.key, failure=watched.last_words)
    steps = [
        Step(tokens - before, ts - begun, watched.core_seconds(ts) - watched.core_seconds(begun))
        for (begun, before), (ts, tokens) in itertools.pairwise(ends)
    ]
    alone = ends[0][1] == 0
    return Outcome(
        contestant.key,
        steps=steps,
        tokens=ends[-1][1],
        first_step_s=ends[1 if alone else 0][0] - watched.started,
        peak_bytes=watched.peak_bytes(ends[-1][0]),
        vram_bytes=vram,
        adapter=str(adapter),
    )
