"""This trainer beside TRL's SFTTrainer, and Unsloth where it is installed: same rows, LoRA, learning rate and loss.

The rule: whoever is measured does the same work. Every contestant sees each row once, in the same number of optimiser
steps with about the same tokens, and is judged on held-out rows by code of neither. Rounds are interleaved, each run is
a process of its own, the first step is warm-up, tokens are those of rows, never padding.

    python -m bench.finetune_vs_trl [MODEL_FOLDER] [--rounds 2] [--steps 4] [--sequences N] [--seq-len N]
                                    [--only KEY …] [--json]

Ours is the worker itself (`python -m engine.trainer`) on an order whose gate is open, read through its journal. Without
a model folder it takes SmolLM2-135M from the package that the tests use. On a card it tells the card's memory. Linux.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.contestants import ALPHA, LR, RANK, SEED, TRL_BATCH, Outcome, Work, contestants, run
from bench.memory_plan import smollm2
from engine import process, resources
from engine.paths import STARTER_ROWS

HELD_OUT = 48


def pick(lengths: list[int], count: int, tokens: int) -> tuple[list[int], list[int]]:
    """Return (`count` rows with about `tokens` tokens in all, `HELD_OUT` others), drawn at random from the seed."""
    chance = random.Random(SEED)
    order = chance.sample(range(len(lengths)), len(lengths))
    chosen, rest = order[:count], order[count:]
    off = sum(lengths[row] for row in chosen) - tokens
    for _ in range(100_000):
        if abs(off) < 4:
            break
        here, there = chance.randrange(len(chosen)), chance.randrange(len(rest))
        changed = off - lengths[chosen[here]] + lengths[rest[there]]
        if abs(changed) < abs(off):
            chosen[here], rest[there], off = rest[there], chosen[here], changed
    return chosen, rest[:HELD_OUT]


def prepare(model: Path, folder: Path, *, seq_len: int, sequences: int, steps: int) -> Work:
    """Write the rows to train on and those held out. Ends the program where there are too few."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = STARTER_ROWS.read_text().splitlines()
    texts = [tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False) for line in lines]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    # Best-fit packing wastes next to nothing on rows this short; a quarter of a pack is left for it.
    tokens = int((steps * sequences - 0.25) * seq_len)
    micro_batches = max(1, round(tokens / (steps * TRL_BATCH * statistics.mean(lengths))))
    count = steps * TRL_BATCH * micro_batches
    if count > len(lines) - HELD_OUT:
        sys.exit(
            f"{count} rows are needed, {len(lines) - HELD_OUT} are there: lower --steps, --sequences or --seq-len."
        )
    chosen, held_out = pick(lengths, count, tokens)
    for name, rows in (("rows", chosen), ("held_out", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(lines[row] + "\n" for row in rows))
    sizes = [lengths[row] for row in chosen]
    return Work(
        model=model,
        rows=folder / "rows.jsonl",
        held_out=folder / "held_out.jsonl",
        seq_len=seq_len,
        sequences=sequences,
        steps=steps,
        micro_batches=micro_batches,
        row_count=count,
        tokens=sum(sizes),
        attended=sum(size * size for size in sizes) / sum(sizes),
    )


def summary(outcomes: list[Outcome], verdict: dict[str, Any], work: Work, *, card: bool) -> dict[str, Any]:
    """Return the figures of one contestant's runs: medians over all timed steps of all rounds."""
    done = [outcome for outcome in outcomes if not outcome.failure]
    if not done:
        return {"failure": outcomes[0].failure}
    steps = [step for outcome in done for step in outcome.steps]
    rates = [step.tokens / step.seconds for step in steps]
    core_s = statistics.median(step.core_seconds / step.tokens for step in steps)
    # LoRA: forward and the gradient of the activations through every frozen matrix, and three products for adapters.
    flops = (
        4 * verdict["matmul_parameters"]
        + 6 * verdict["layers"] * verdict["query_width"] * work.attended
        + 6 * verdict["adapter_parameters"]
    )
    # On a CPU of the time that the cores gave, as the ceiling is measured.
    reached = flops * (statistics.median(rates) if card else verdict["threads"] / core_s)
    return {
        "tokens_per_s": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "core_s_per_1000": 1000 * core_s,
        "mfu": reached / verdict["ceiling"],
        "peak_bytes": statistics.median(outcome.peak_bytes for outcome in done),
        "vram_bytes": statistics.median(outcome.vram_bytes for outcome in done),
        "first_step_s": statistics.median(outcome.first_step_s for outcome in done),
        "tokens": done[-1].tokens,
        "loss": verdict["losses"].get(done[-1].key),
    }


def told(outcome: Outcome) -> str:
    """Return a run's speed, or how it failed, in words."""
    if outcome.failure:
        return outcome.failure
    tokens = sum(step.tokens for step in outcome.steps)
    seconds, cores = (sum(getattr(s, name) for s in outcome.steps) for name in ("seconds", "core_seconds"))
    return f"{tokens / seconds:.0f} tok/s, {1000 * cores / tokens:.2f} core-s per 1000 tokens"


def judge(work: Work, outcomes: list[Outcome]) -> dict[str, Any]:
    """Have the adapters of each contestant's last full run judged on the held-out rows."""
    full = {o.key: o.adapter for o in outcomes if not o.failure and o.tokens > work.tokens / 2}
    verdict = json.loads(process.run_tool("bench.judge", [str(work.model), str(work.held_out), *full.values()]))
    return {**verdict, "losses": dict(zip(full, verdict["losses"], strict=True))}


def compare(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all rounds and return every figure."""
    device = resources.devices()[0]
    card = device.type == "cuda"
    model = Path(asked.model).absolute() if asked.model else folder / "model"
    if not asked.model:
        process.run_tool("engine.trainer.convert", [smollm2(), str(model)])
    work = prepare(
        model,
        folder,
        seq_len=asked.seq_len or (2048 if card else 1024),
        sequences=asked.sequences or (8 if card else 2),
        steps=asked.steps,
    )
    field_of = [one for one in contestants(device, work) if not asked.only or one.key in asked.only]
    outcomes: list[Outcome] = []
    for number in range(asked.rounds):
        for one in field_of:
            if number and one.once:
                continue
            outcome = run(one, work, folder / f"{number}-{one.key}", device.name)
            outcomes.append(outcome)
            print(f"round {number + 1}, {one.name}: {told(outcome)}", file=sys.stderr)
    verdict = judge(work, outcomes)
    table = {one.key: summary([o for o in outcomes if o.key == one.key], verdict, work, card=card) for one in field_of}
    return {
        "device": device.label,
        "card": card,
        "work": {key: value for key, value in asdict(work).items() if not isinstance(value, Path)},
        "rounds": asked.rounds,
        "verdict": verdict,
        "names": {one.key: one.name for one in field_of},
        "table": table,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def show(found: dict[str, Any]) -> None:
    """Print the figures as a table."""
    work, verdict, ours = found["work"], found["verdict"], found["table"].get("ours", {})
    print(
        f"{found['device']}; {verdict['parameters'] / 1e6:.1f} M parameters, LoRA r {RANK} alpha {ALPHA} on all linear "
        f"layers, lr {LR:g} constant, loss on all tokens\n"
        f"{work['row_count']} rows, {work['tokens']:,} tokens once, in {work['steps']} steps, the first not timed; "
        f"seq_len {work['seq_len']}; {found['rounds']} rounds\n"
        f"held-out loss of {verdict['held_out_rows']} rows ({verdict['dtype']}, row by row): "
        f"{verdict['loss_before']:.4f} before; matrix products reach {verdict['ceiling'] / 1e9:,.0f} GFLOP/s here"
    )
    peak = "vram_bytes" if found["card"] else "peak_bytes"
    print(
        f"\n{'':<34}{'tok/s':>8}{'least–most':>15}{'ours':>8}{'core-s/1k':>11}{'ours':>8}{'MFU':>6}"
        f"{'peak GB':>9}{'1st step':>10}{'loss':>9}"
    )
    for key, row in found["table"].items():
        name = found["names"][key]
        if "failure" in row:
            print(f"{name:<34}  failed: {row['failure']}")
            continue
        wall = f"{ours['tokens_per_s'] / row['tokens_per_s']:.2f}×" if ours else "—"
        cores = f"{row['core_s_per_1000'] / ours['core_s_per_1000']:.2f}×" if ours else "—"
        loss = "—" if row["loss"] is None else f"{row['loss']:.4f}"
        spread = f"{row['least']:.0f}–{row['most']:.0f}"
        print(
            f"{name:<34}{row['tokens_per_s']:>8.0f}{spread:>15}{wall:>8}{row['core_s_per_1000']:>11.2f}{cores:>8}"
            f"{row['mfu']:>6.0%}{row[peak] / 1e9:>9.2f}{row['first_step_s']:>9.1f}s{loss:>9}"
        )


def main() -> None:
    """Print the table, or with --json every figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", help="a model folder; SmolLM2-135M without one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps of a run, the first not timed")
    parser.add_argument("--sequences", type=int, help="packs in a step; 2, on a card 8")
    parser.add_argument("--seq-len", type=int, help="tokens in a pack; 1024, on a card 2048")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="ours, trl, packed, grouped, packing, bf16, unsloth")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(asked, Path(folder))
    if asked.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main()
