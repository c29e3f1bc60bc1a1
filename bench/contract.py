"""Contraction beside methods that look at weights alone: perplexity after a share of all neurons is gone.

The rule: everyone takes the same number of neurons from every layer of the same model, and is judged on the same texts,
which nobody was calibrated on. Ours is what the job does on text that the model wrote, by the job's own functions. As
each layer is judged on what the whole model hands to it, its statistics are taken once for all ratios; the seconds of
each row count them again, and those of ours the writing of the text too.

    python -m bench.contract [MODEL_FOLDER] [--ratios 15 30 50] [--only KEY …] [--heal 100] [--text FILE] [--json]

MAW: a neuron is worth max|w| + |min w| of its gate row and its up row; PPM: the product of the norms of its three
vectors. Without a model folder it takes SmolLM2-135M from the package that the tests use.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bench.memory_plan import smollm2
from engine import process
from engine.jobs.hyperparams import ContractHyperparams
from engine.journal import JournalWriter
from engine.order import CHECKPOINTS, JOURNAL, Order
from engine.paths import STARTER_ROWS
from engine.plans import contraction
from engine.trainer import models, selftext
from engine.trainer.contract import job, layout, obs, sweep
from engine.trainer.contract.obs import Remaining
from engine.trainer.models import dense
from engine.trainer.phases import Phase, Phases
from engine.trainer.reporter import Reporter
from engine.trainer.run import StopFlag

CPU = torch.device("cpu")
TEXT = Path("/usr/share/common-licenses/GPL-3")  # on every Debian; read in windows
WINDOW, WINDOWS, JUDGED_ROWS = 512, 8, 60
SEED = 0


@dataclass(frozen=True)
class Judges:
    """What every contestant is judged on: token sequences of chat rows, and of a text."""

    rows: list[list[int]]
    text: list[list[int]]

    def judge(self, model: Any) -> dict[str, float]:
        """Return the perplexity on each, over every token but the first of a sequence."""
        return {"rows": perplexity(model, self.rows), "text": perplexity(model, self.text)}


@torch.no_grad()
def perplexity(model: Any, sequences: list[list[int]]) -> float:
    """Return the perplexity of sequences, each by itself, by the model's own forward pass."""
    total, count = 0.0, 0
    for ids in sequences:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
        total += float(functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        count += len(ids) - 1
    return math.exp(total / count)


def chat_rows(tokenizer: Any) -> list[list[int]]:
    """Return the starter rows as tokens, in the file's order."""
    rows = [json.loads(line)["messages"] for line in STARTER_ROWS.read_text().splitlines()]
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


def judges(tokenizer: Any, file: Path) -> Judges:
    """Return rows spread over the starter rows, and the first windows of a text."""
    rows = chat_rows(tokenizer)
    text = tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]
    windows = [text[begin : begin + WINDOW] for begin in range(0, len(text), WINDOW)]
    return Judges(rows[:: len(rows) // JUDGED_ROWS][:JUDGED_ROWS], [one for one in windows[:WINDOWS] if len(one) > 1])


def real_text(tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Return sequences that nobody is judged on: starter rows between those that judge, and other licences."""
    rows = chat_rows(tokenizer)
    step = len(rows) // JUDGED_ROWS
    others = [token for number, ids in enumerate(rows) if number % step for token in ids]
    licences = [one for one in sorted(TEXT.parent.glob("*")) if one.is_file() and not one.name.startswith("GPL")]
    prose = tokenizer("\n".join(one.read_text(errors="replace") for one in licences), add_special_tokens=False)[
        "input_ids"
    ]
    half = count // 2
    return [
        source[begin * length : (begin + 1) * length]
        for source, wanted in ((others, half), (prose, count - half))
        for begin in range(wanted)
        if len(source) >= (begin + 1) * length
    ]


Score = Callable[[Any], torch.Tensor]


def maw(mlp: Any) -> torch.Tensor:
    """Return each neuron's worth [f] by the greatest and the least weight of its gate and up rows."""
    rows = (dense(mlp.gate_proj).float(), dense(mlp.up_proj).float())
    return sum((row.amax(1) + row.amin(1).abs() for row in rows), torch.zeros(()))


def ppm(mlp: Any) -> torch.Tensor:
    """Return each neuron's worth [f] by the product of its magnitudes."""
    inward = dense(mlp.gate_proj).float().norm(dim=1) * dense(mlp.up_proj).float().norm(dim=1)
    return inward * dense(mlp.down_proj).float().norm(dim=0)


def drawn(mlp: Any) -> torch.Tensor:
    """Return worth [f] by lot."""
    return torch.rand(mlp.down_proj.in_features, generator=torch.Generator().manual_seed(SEED))


def by(score: Score | None, *, repair: bool) -> sweep.Choose:
    """Return what keeps the neurons of the greatest worth (None: ours), with the down projection fitted or not."""

    def choose(mlp: Any, down: torch.Tensor, gram: torch.Tensor, count: int) -> Remaining:
        if score is None:
            kept = obs.remove(down, gram, count).kept
        else:
            kept = score(mlp).topk(len(gram) - count).indices.sort().values
        return obs.repaired(down, gram, kept) if repair else Remaining(kept, dense(mlp.down_proj)[:, kept], 0.0)

    return choose


CONTESTANTS: dict[str, tuple[str, sweep.Choose | None]] = {
    "ours": ("ours", sweep.least_damage),
    "real": ("ours, calibrated on real text", sweep.least_damage),
    "unrepaired": ("ours without repair", by(None, repair=False)),
    "maw": ("MAW", by(maw, repair=False)),
    "maw+ls": ("MAW with repair", by(maw, repair=True)),
    "ppm": ("PPM", by(ppm, repair=False)),
    "ppm+ls": ("PPM with repair", by(ppm, repair=True)),
    "random": ("random", by(drawn, repair=False)),
    "random+ls": ("random with repair", by(drawn, repair=True)),
    "healed": ("ours, healed", None),
}
BLIND = ("maw", "ppm", "random")  # they look at no text, so none is shown to them
OURS = ("ours", "unrepaired")


def blindly(model: Any, choose: sweep.Choose, counts: list[int]) -> None:
    """Remove neurons by their weights alone."""
    for layer, count in zip(model.get_decoder().layers, counts, strict=True):
        size = layer.mlp.down_proj.in_features
        down = dense(layer.mlp.down_proj)
        sweep.keep_neurons(layer.mlp, choose(layer.mlp, down, torch.empty(size, 0), count))


@dataclass(frozen=True)
class Statistics:
    """What the surgery needs of a model on some text: H [f, f] of each layer, and the seconds that it took."""

    grams: list[torch.Tensor]
    seconds: float

    @classmethod
    def of(cls, model: Any, sequences: list[list[int]]) -> Statistics:
        """Look at every layer of the whole model."""
        begun = time.monotonic()
        hidden, others = sweep.entrances(model, torch.tensor(sequences))
        grams = []
        for layer, named in zip(model.get_decoder().layers, others, strict=True):
            seen = sweep.look(layer, hidden, named)
            hidden = seen.out
            grams.append(seen.gram)
        return cls(grams, time.monotonic() - begun)

    def apply(self, model: Any, choose: sweep.Choose, counts: list[int]) -> None:
        """Remove neurons as the job's sweep does, by what was seen."""
        for layer, gram, count in zip(model.get_decoder().layers, self.grams, counts, strict=True):
            down, gram = sweep.surgical(layer.mlp.down_proj, gram)  # noqa: PLW2901
            sweep.keep_neurons(layer.mlp, choose(layer.mlp, down, gram, count))


def healed(folder: Path, source: Path, written: list[list[int]], ratio: float, asked: argparse.Namespace) -> Any:
    """Return the model of a whole contract job with healing, on text that is there already."""
    model = json.loads((source / "config.json").read_text())
    settings = ContractHyperparams(
        contraction_ratio=ratio,
        num_layers_to_contract=model["num_hidden_layers"],
        seq_len=asked.seq_len,
        heal_steps=asked.heal,
        batch_size=asked.heal_batch,
        save_steps=10_000,
    )
    root = folder / "attempt" / CHECKPOINTS
    root.mkdir(parents=True)
    Phases([root]).save("text", Phase({"seconds": 0.0}, {"ids": torch.tensor(written, dtype=torch.int32)}))
    order = Order(
        job_id="bench",
        fence=1,
        type="contract",
        device="cpu",
        hyperparams=settings.model_dump(),
        model_id="model",
        model_name="model",
        model_path=str(source),
        dataset_name="",
        dataset_path="",
        dataset_sha256="",
        output_id="out",
        output_name="out",
        output_path=str(folder / "out"),
        checkpoint_roots=(str(root),),
    )
    job.run_job(order, Reporter(JournalWriter(folder / JOURNAL, 1)), StopFlag())
    return models.load_model(folder / "out", torch.float32)


def compare(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Contract by every method at every ratio; return every figure."""
    source = Path(asked.model).absolute() if asked.model else folder / "model"
    if not asked.model:
        process.run_tool("engine.trainer.convert", [smollm2(), str(source)])
    model = models.load_model(source, torch.float32).eval().requires_grad_(False)
    tokenizer = models.load_tokenizer(source)
    judged, shape = judges(tokenizer, asked.text), layout.shape_of(model)
    dense_ppl = judged.judge(model)
    tell(f"dense: {dense_ppl}")
    begun = time.monotonic()
    if asked.own and asked.own.exists():
        written = json.loads(asked.own.read_text())
    else:
        written = selftext.write(
            model,
            tokenizer,
            CPU,
            count=asked.sequences,
            length=asked.seq_len,
            seed=SEED,
            temperatures=job.TEMPERATURES,
            tell=lambda n, all: tell(f"{n} of {all}"),
        )
        if asked.own:
            asked.own.write_text(json.dumps(written))
    writing = time.monotonic() - begun
    own = [ids for number, ids in enumerate(written) if number % job.HELD_OUT]
    real = real_text(tokenizer, len(own), asked.seq_len)
    wanted = [key for key in CONTESTANTS if not asked.only or key in asked.only]
    seen = {"own": Statistics.of(model, own)}
    if "real" in wanted:
        seen["real"] = Statistics.of(model, real)
    tell(f"statistics: {', '.join(f'{name} {one.seconds:.0f} s' for name, one in seen.items())}")
    rows = []
    for percent in asked.ratios:
        width = contraction.uniform_width(shape, percent / 100, shape.layers)
        counts = [shape.mlp - width] * shape.layers
        for key in wanted:
            name, choose = CONTESTANTS[key]
            if key == "healed" and not asked.heal:
                continue
            begun, before = time.monotonic(), 0.0
            if choose is None:
                made = healed(folder / f"healed-{percent}", source, written, percent / 100, asked)
            else:
                made = copy.deepcopy(model)
                if key in BLIND:
                    blindly(made, choose, counts)
                else:
                    statistics = seen["real" if key == "real" else "own"]
                    statistics.apply(made, choose, counts)
                    before = statistics.seconds + (writing if key in OURS else 0.0)
            seconds = before + time.monotonic() - begun
            row = {"percent": percent, "key": key, "name": name, "seconds": seconds, **judged.judge(made)}
            tell(str(row))
            rows.append(row)
    return {
        "parameters": model.num_parameters(),
        "layers": shape.layers,
        "text": str(asked.text),
        "dense": dense_ppl,
        "own": {"sequences": len(own), "tokens": len(own) * asked.seq_len, "seconds": writing},
        "real_sequences": len(real),
        "heal_steps": asked.heal,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }


def tell(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr, flush=True)


def show(found: dict[str, Any]) -> None:
    """Print the figures as a table."""
    base, own = found["dense"], found["own"]
    print(
        f"{found['parameters'] / 1e6:.1f} M parameters, neurons taken from all {found['layers']} layers; dense: rows "
        f"{base['rows']:.1f}, text {base['text']:.1f} ({found['text']})\n"
        f"own text: {own['sequences']} sequences, {own['tokens']:,} tokens, written in {own['seconds']:.0f} s; "
        f"{found['threads']} threads"
    )
    print(f"\n{'':<34}{'neurons':>9}{'rows':>10}{'':>9}{'text':>10}{'':>9}{'seconds':>9}")
    for row in found["rows"]:
        cells = "".join(f"{row[name]:>10.1f}{row[name] / base[name]:>8.2f}×" for name in ("rows", "text"))
        print(f"{row['name']:<34}{-row['percent']:>8.0f}%{cells}{row['seconds']:>9.0f}")


def main() -> None:
    """Print the table, or with --json every figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", help="a model folder; SmolLM2-135M without one")
    parser.add_argument("--ratios", type=float, nargs="+", default=[15, 30, 50], help="per cent of all neurons")
    parser.add_argument("--sequences", type=int, default=128, help="that the model writes of itself")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--own", type=Path, help="file that keeps the model's own text from run to run")
    parser.add_argument("--text", type=Path, default=TEXT, help="file to judge on beside the chat rows")
    parser.add_argument("--heal", type=int, default=100, help="steps of healing; 0: none")
    parser.add_argument("--heal-batch", type=int, default=4, help="sequences per step of it")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="KEY", help=", ".join(CONTESTANTS))
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
