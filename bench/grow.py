"""Growth on a real model: what each operator preserves, and what is gained on new text for what is lost on the old.

Preservation: the largest change of a logit over the largest logit, of the folded model against the original, in fp64,
fp32 and bf16. Frontier: held-out perplexity on new rows against perplexity on text that the model wrote itself, for
full fine-tuning, LoRA, and growth whose new weights alone learn, without and with retention; several learning rates
each, measured along the way, all on the same rows in the same order. The loss at equal gain is read off each frontier
by linear interpolation in the logarithm of the perplexities.

    python -m bench.grow [MODEL_FOLDER] [--rows FILE] [--steps 33] [--seq-len 128] [--only METHOD ...] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.memory_plan import smollm2
from engine.data import importing
from engine.jobs.hyperparams import FinetuneHyperparams, LoopHyperparams, TrainHyperparams
from engine.journal import JournalWriter
from engine.order import Order
from engine.paths import STARTER_ROWS
from engine.plans import growth
from engine.trainer import evaluate, lora, models, optimizer, preparing, selftext
from engine.trainer.checkpoint import LoopState
from engine.trainer.data.batch import Document
from engine.trainer.grow import diagnose
from engine.trainer.grow.operators import Grown, Growth, room
from engine.trainer.grow.retention import Retention, documents
from engine.trainer.loop import begin
from engine.trainer.objective import Objective
from engine.trainer.preparing import Prepared
from engine.trainer.reporter import Reporter
from engine.trainer.run import Run, StopFlag
from engine.trainer.schedule import learning_rate
from engine.trainer.step import train_step

RATIO = 0.25
JUDGED_OWN, HELD_OWN, OWN_LENGTH = 10, 32, 160
JUDGED_ROWS = 24
LOOKS = 3  # along a run


@dataclass(frozen=True)
class Method:
    """A way to train: its name and the rates that are tried."""

    name: str
    rates: tuple[float, ...]
    grows: bool = False
    retain: float = 0.0


METHODS = (
    Method("full", (1e-5, 3e-5)),
    Method("lora", (3e-4, 1e-3)),
    Method("grown", (3e-4, 1e-3), grows=True),
    Method("grown, retain 0.1", (3e-4, 1e-3), grows=True, retain=0.1),
    Method("grown, retain 1", (3e-4, 1e-3), grows=True, retain=1.0),
    Method("grown, retain 4", (3e-4,), grows=True, retain=4.0),
)


@dataclass(frozen=True)
class Work:
    """What all methods share: order, rows, the model's own text, and where to train."""

    order: Order
    ready: Prepared
    judged_own: list[list[Document]]
    held_own: list[list[int]]
    growth: Growth
    reporter: Reporter
    steps: int
    seq_len: int


def preserved(folder: Path) -> list[dict[str, Any]]:
    """Return how far each operator's folded model is from the original, by dtype."""
    found = []
    ids = torch.randint(0, 1000, (8, 256), generator=torch.Generator().manual_seed(0))
    for name, grown in (("depth", Growth(blocks=(14, 22, 29))), ("width", Growth(units=256))):
        row: dict[str, Any] = {"operator": name}
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            model = models.load_model(folder, dtype).eval()
            some = ids if dtype == torch.float32 else ids[:1]  # others are slow here
            with torch.no_grad():
                before = model(input_ids=some, use_cache=False).logits
                made = Grown(model, grown, seed=0).fold().to(dtype)
                after = made(input_ids=some, use_cache=False).logits
            row[str(dtype).removeprefix("torch.")] = float((after - before).abs().max() / before.abs().max())
        found.append(row)
    return found


def prepare(model: Path, rows: Path, folder: Path, *, steps: int, seq_len: int) -> Work:
    """Read the rows, let the model write, and decide where it grows."""
    settings = TrainHyperparams.model_validate({"seq_len": seq_len})
    (folder / "attempt-1").mkdir()
    order = Order(
        job_id="bench",
        fence=1,
        type="train",
        device="cuda:0" if torch.cuda.is_available() else "cpu",
        hyperparams={},
        model_id="model",
        model_name="model",
        model_path=str(model),
        dataset_name="rows",
        dataset_path=str(rows),
        dataset_sha256="0" * 64,
        output_id="out",
        output_name="out",
        output_path=str(folder / "out"),
        checkpoint_roots=(str(folder / "attempt-1" / "checkpoints"),),
    )
    reporter = Reporter(JournalWriter(folder / "attempt-1" / "journal.jsonl", 1))
    ready = preparing.read(order, settings, reporter)
    base = preparing.load(order, settings, reporter, ready.device)
    count = math.ceil((JUDGED_OWN + HELD_OWN) / (1 - selftext.DROPPED))
    own = selftext.write(base, ready.tokenizer, ready.device, count=count, length=OWN_LENGTH, seed=1)
    probed = [one.ids[:256] for pack in ready.corpus.sequences(0, 8, 0) for one in pack][:16]
    size = growth.size(room(base), RATIO, "depth")
    places = diagnose.places(diagnose.scores(base, probed, ready.device), size.blocks)
    return Work(order, ready, documents(own[:JUDGED_OWN]), own[JUDGED_OWN:], Growth(places), reporter, steps, seq_len)


def learner(method: Method, work: Work, rate: float) -> Run:
    """Return a run of `method`, its model loaded afresh."""
    shared = {"lr": rate, "seq_len": work.seq_len}
    settings: LoopHyperparams = (
        TrainHyperparams.model_validate({**shared, "cycles": 1, "steps_per_cycle": work.steps})
        if method.grows
        else FinetuneHyperparams.model_validate(
            {**shared, "steps": work.steps, "training_type": "full" if method.name == "full" else "lora"}
        )
    )
    model = preparing.load(work.order, settings, work.reporter, work.ready.device)
    grown = Grown(model, work.growth, seed=0) if method.grows else None
    if isinstance(settings, FinetuneHyperparams) and settings.training_type == "lora":
        model = lora.add_adapters(model, settings).to(work.ready.device)
    objective = preparing.objective(model, work.ready, settings, work.reporter)
    penalty = None
    if grown and method.retain:
        penalty = Retention(grown, objective, work.held_own, weight=method.retain, seed=0)
    return Run(
        objective=objective,
        optimizer=optimizer.make(model, settings, work.ready.device),
        corpus=work.ready.corpus,
        settings=settings,
        roots=(Path(work.order.checkpoint_roots[0]),),
        keep_checkpoints=2,
        reporter=work.reporter,
        stop=StopFlag(),
        penalty=penalty,
    )


def judged(objective: Objective, work: Work) -> tuple[float, float]:
    """Return (perplexity on held-out new rows, on the model's own text)."""
    new = evaluate.mean_loss(objective, work.ready.corpus.validation[:JUDGED_ROWS], 1)
    return math.exp(new), math.exp(evaluate.mean_loss(objective, work.judged_own, 4))


def walk(method: Method, work: Work, rate: float) -> Iterator[dict[str, Any]]:
    """Train, and yield where the model stands a few times on the way."""
    run, state = learner(method, work, rate), LoopState()
    begin(run, state)
    spent = 0.0
    for step in range(1, work.steps + 1):
        began = time.perf_counter()
        peak = learning_rate(step, steps=work.steps, peak=rate, shape="cosine", warmup=round(0.03 * work.steps))
        train_step(run, state, step, peak)
        spent += time.perf_counter() - began
        if step * LOOKS % work.steps == 0:
            new, own = judged(run.objective, work)
            yield {"method": method.name, "lr": rate, "step": step, "new": new, "own": own, "seconds": spent}


def cost_at(points: list[dict[str, Any]], base: dict[str, float], target: float) -> float | None:
    """Return the least log-loss on own text, over the rates of a method, at which the new rows reach `target`."""
    best: float | None = None
    for rate in sorted({point["lr"] for point in points}):
        before = {"new": base["new"], "own": base["own"]}
        for point in (point for point in points if point["lr"] == rate):
            low, high = math.log(before["new"]), math.log(point["new"])
            if min(low, high) <= math.log(target) <= max(low, high) and low != high:
                share = (low - math.log(target)) / (low - high)
                own = math.log(before["own"]) + share * math.log(point["own"] / before["own"])
                found = own - math.log(base["own"])
                best = found if best is None else min(best, found)
            before = point
    return best


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    print("preservation: largest change of a logit over the largest logit, folded model against original")
    print(f"{'operator':10}{'fp64':>10}{'fp32':>10}{'bf16':>10}")
    for row in found["preservation"]:
        print(f"{row['operator']:10}{row['float64']:>10.1e}{row['float32']:>10.1e}{row['bfloat16']:>10.1e}")
    base = found["base"]
    print(f"\nfrontier: new rows {base['new']:.2f}, own text {base['own']:.2f} before; {found['steps']} steps")
    print(f"{'method':20}{'lr':>8}{'step':>6}{'new':>8}{'own':>8}{'own lost':>10}{'s':>7}")
    for point in found["points"]:
        lost = point["own"] / base["own"] - 1
        print(
            f"{point['method']:20}{point['lr']:>8.0e}{point['step']:>6}{point['new']:>8.2f}{point['own']:>8.2f}"
            f"{lost:>+10.1%}{point['seconds']:>7.0f}"
        )
    print("\nwhat each loses on its own text where the new rows reach the same perplexity (log-perplexity, nats)")
    print(f"{'new rows at':20}" + "".join(f"{method:>20}" for method in found["methods"]))
    for row in found["matched"]:
        cells = (row["lost"][method] for method in found["methods"])
        print(f"{row['new']:<20.2f}" + "".join(f"{'–' if cell is None else f'{cell:.4f}':>20}" for cell in cells))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model folder; left out: SmolLM2-135M")
    parser.add_argument("--rows", type=Path, default=STARTER_ROWS)
    parser.add_argument("--steps", type=int, default=33)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--only", nargs="*", metavar="METHOD", help="the beginning of methods' names")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    chosen = [m for m in METHODS if not asked.only or any(m.name.startswith(name) for name in asked.only)]
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), Path(asked.model or "")
        if not asked.model:
            model = folder / "model"
            importing.convert_gguf(Path(smollm2()), model, python=sys.executable, progress=importing.silent)
        work = prepare(model, asked.rows, folder, steps=asked.steps, seq_len=asked.seq_len)
        run = learner(METHODS[0], work, 1e-5)
        new, own = judged(run.objective, work)
        del run
        points: list[dict[str, Any]] = []
        for method in chosen:
            for rate in method.rates:
                for point in walk(method, work, rate):
                    points.append(point)
                    print(json.dumps(point), file=sys.stderr, flush=True)
        base = {"new": new, "own": own}
        by_method = {m.name: [point for point in points if point["method"] == m.name] for m in chosen}
        # From a little gain to as much as every method has reached at some rate.
        reached = max(min((point["new"] for point in found), default=new) for found in by_method.values())
        targets = [math.exp(math.log(new) + share * math.log(reached / new)) for share in (0.5, 0.75, 0.9, 1.0)]
        found = {
            "preservation": preserved(model),
            "base": base,
            "steps": asked.steps,
            "methods": list(by_method),
            "points": points,
            "matched": [
                {"new": target, "lost": {name: cost_at(some, base, target) for name, some in by_method.items()}}
                for target in targets
            ],
        }
    if asked.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main()
