"""The contract job: a model writes text, loses neurons or layers on it, is repaired, healed if asked, and published.

The rule: every phase is published when it is done, a layer at a time where layers go, and what follows depends on what
is published alone; so a run that was killed ends with the model of one that was not. The source is only read.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.jobs.hyperparams import ContractHyperparams
from engine.order import Order
from engine.trainer import device as devices
from engine.trainer import evaluate, loop, lora, models, optimizer, selftext
from engine.trainer.checkpoint import LoopState
from engine.trainer.contract import healing, layout, sweep, targeted
from engine.trainer.contract.layout import Layout
from engine.trainer.contract.obs import Remaining
from engine.trainer.contract.progress import Progress
from engine.trainer.data import corpora, documents, sources
from engine.trainer.data.batch import Document
from engine.trainer.data.corpora import Corpus
from engine.trainer.data.documents import Packs
from engine.trainer.objective import Objective
from engine.trainer.peak import Peak
from engine.trainer.phases import Phase, Phases
from engine.trainer.publish import Finish, publish
from engine.trainer.reporter import Reporter
from engine.trainer.run import Run, StopFlag, Stopped

HELD_OUT = 8  # one in so many of its own sequences judges; the model is calibrated on the others
# Half of the text is drawn a little closer to what the model finds likely: nearer to what it is asked in practice. On
# SmolLM2-135M without 30 % of its neurons, text of temperature 1 alone gave 1.51 times the perplexity on chat rows and
# 1.74 times on a licence, of 0.8 alone 1.41 and 2.14, of both, twice as much, 1.34 and 1.76 (damping 1e-2).
TEMPERATURES = (1.0, 0.8)
PREDICTED_ON = 16  # sequences that tell which layers can be spared
STEPS_AFTER = "steps_after"  # in the event and the phase of the choice: the step before that of the first layer's point
EVAL_ROWS, EVAL_TOKENS = 200, 1024  # of the dataset that is reported on: its first rows, in packs of so many tokens


@dataclass(frozen=True)
class Work:
    """What every phase of one job needs."""

    order: Order
    settings: ContractHyperparams
    device: torch.device
    tokenizer: Any
    phases: Phases
    reporter: Reporter
    stop: StopFlag
    progress: Progress

    def go_on(self) -> None:
        """Raise Stopped where the run was asked to stop."""
        if self.stop.requested:
            raise Stopped

    def load(self, dtype: torch.dtype) -> Any:
        """Return the source model on the CPU."""
        return models.load_model(Path(self.order.model_path), dtype)


@dataclass(frozen=True)
class Texts:
    """What the model is calibrated on and judged by: its own text, and packs of the dataset that is reported on."""

    calibration: list[list[int]]
    own: Corpus
    rows: Sequence[list[Document]]

    @classmethod
    def of(cls, written: list[list[int]], rows: Sequence[list[Document]], pad: int) -> Texts:
        """Hold a part of what the model wrote out, of every kind of beginning the same share."""
        calibration = [ids for number, ids in enumerate(written) if number % HELD_OUT]
        return cls(calibration, healing.corpus(calibration, written[::HELD_OUT], pad), rows)


def write(work: Work, model: Any) -> Phase:
    """Let the model write its text."""
    settings, begun = work.settings, time.monotonic()
    count, length = settings.calibration_sequences, settings.seq_len

    def tell(done: int, whole: int) -> None:
        work.progress.tell("calibrate", done / whole, f"the model writes text of its own: {done} of {whole} sequences")
        work.reporter.points([{"step": done, "phase": "calibrate", "ts": time.time(), "loss": None}])
        work.go_on()

    work.progress.tell("calibrate", 0, f"the model writes text of its own: {count} sequences of {length} tokens")
    ids = selftext.write(
        model,
        work.tokenizer,
        work.device,
        count=count,
        length=length,
        seed=settings.seed,
        temperatures=TEMPERATURES,
        tell=tell,
    )
    return Phase({"seconds": time.monotonic() - begun}, {"ids": torch.tensor(ids, dtype=torch.int32)})


def reported_rows(work: Work) -> Sequence[list[Document]]:
    """Return the first rows of the dataset that is reported on, packed; none where none is named. Raises RowError."""
    order = work.order
    if not order.dataset_path:
        return []
    work.reporter.activity(f"reading {order.dataset_name}")
    source = sources.of_order(order)
    # A copy, for what is published keeps the template it had, or none.
    tokenizer = copy.deepcopy(work.tokenizer)
    models.ensure_chat_template(tokenizer)
    found = source.tokens(tokenizer, work.reporter.activity, work.reporter.log)
    fitted = documents.fit(found, seq_len=EVAL_TOKENS, everything=False)
    refused = corpora.refusal(fitted)
    if refused and len(fitted.bad) == len(found.ends):
        raise refused
    first = fitted.of_rows(np.unique(fitted.rows)[:EVAL_ROWS])
    packs = corpora.pack(fitted.sizes[first].tolist(), EVAL_TOKENS)
    return Packs(fitted, [first[each].tolist() for each in packs])


def judged(work: Work, model: Any, texts: Texts) -> dict[str, Any]:
    """Return the mean loss of a model on its own held-out text and on the dataset that is reported on."""
    given = models.causal(model).config._attn_implementation
    objective = Objective.of(model, work.device, texts.own.pad, texts.own.validation[0])
    own = evaluate.mean_loss(objective, texts.own.validation, 1)
    rows = evaluate.mean_loss(objective, texts.rows, 1) if texts.rows else None
    models.causal(model).set_attn_implementation(given)
    return {"own": own, "rows": rows}


def baseline(work: Work, model: Any, texts: Texts) -> Phase:
    """Judge the model as it is."""
    work.progress.tell("judge", 0, "evaluating the model as it is")
    begun = time.monotonic()
    return Phase({**judged(work, model, texts), "seconds": time.monotonic() - begun})


def choose(work: Work, model: Any, texts: Texts) -> Phase:
    """Decide what goes."""
    settings, begun = work.settings, time.monotonic()
    few = texts.calibration[:: max(1, len(texts.calibration) // PREDICTED_ON)][:PREDICTED_ON]
    layers = len(model.get_decoder().layers)

    def tell(number: int) -> None:
        work.go_on()
        text = f"looking for the layers that can be spared: {number} of {layers}"
        work.progress.tell("choose", number / layers, text)

    tell(0)
    if settings.layout == "uniform":
        found = layout.uniform(model, settings)
    elif settings.layout == "targeted":
        found = layout.targeted(model, settings, few, work.device, tell)
    else:
        found = layout.depth(model, settings, few, work.device)
    # Without steps of healing, those of the phases are the job's own: the layers' go on from the sequences'.
    after = 0 if settings.heal_steps else settings.calibration_sequences
    facts = {"counts": list(found.counts), "gone": list(found.gone), "scores": list(found.scores), STEPS_AFTER: after}
    told = {"layers": found.processed, "scores": facts["scores"], STEPS_AFTER: after}
    work.reporter.event("contract", layout=settings.layout, **told)
    work.reporter.log(described(found, settings))
    return Phase({**facts, "seconds": time.monotonic() - begun})


def described(found: Layout, settings: ContractHyperparams) -> str:
    """Return in words what goes."""
    layers = ", ".join(map(str, found.processed))
    if found.gone:
        return f"Layout depth: the layers {layers} go, which change what goes through them least."
    if settings.layout == "targeted":
        return f"Layout targeted: {max(found.counts)} neurons go from each of the layers {layers}."
    return f"Layout uniform: {max(found.counts)} neurons go from every layer."


def remaining(phase: Phase) -> Remaining:
    """Return what a layer's phase holds."""
    return Remaining(phase.tensors["kept"], phase.tensors["down"], phase.facts["damage"])


def prune(work: Work, model: Any, found: Layout, texts: Texts, *, steps_after: int) -> dict[int, Phase]:
    """Remove what goes from `model`, in place, layer by layer; return what was found of each, by number.

    The step of a layer's point is its number, from 1, behind `steps_after`.
    """
    names = {number: f"prune-{number:03d}" for number in found.processed}
    done = {number: phase for number in names if (phase := work.phases.load(names[number]))}
    begun = time.monotonic()

    def tell(number: int, left: Remaining) -> None:
        nonlocal begun
        facts = {"damage": left.damage, "seconds": time.monotonic() - begun}
        done[number] = Phase(facts, {"kept": left.kept.cpu(), "down": left.down.float().cpu()})
        work.phases.save(names[number], done[number])
        work.reporter.points([point(steps_after + number, left.damage)])
        say()
        work.go_on()
        begun = time.monotonic()

    def say() -> None:
        work.progress.tell("prune", len(done) / len(names), f"pruning: {len(done)} of {len(names)} layers")

    def known(number: int) -> Remaining | None:
        return on_device(remaining(done[number]), work.device) if number in done else None

    # Again: an attempt may have died between saving one and telling of it.
    if done:
        work.reporter.points([point(steps_after + number, phase.facts["damage"]) for number, phase in done.items()])
    say()
    if len(done) < len(names):
        sweep.contract(model, texts.calibration, found.counts, work.device, known=known, tell=tell)
    else:
        repair(model, done, work.device)
    return done


def point(before: int, damage: float) -> dict[str, Any]:
    """Return the telemetry of a layer, at the step behind `before`."""
    return {"step": before + 1, "phase": "prune", "ts": time.time(), "loss": damage}


def on_device(left: Remaining, device: torch.device) -> Remaining:
    """Return what is left of a layer on the device."""
    return replace(left, kept=left.kept.to(device), down=left.down.to(device))


def repair(model: Any, done: dict[int, Phase], device: torch.device) -> None:
    """Leave in each layer's MLP, in place, what was found to be left of it."""
    layers = model.get_decoder().layers
    for number, phase in done.items():
        sweep.keep_neurons(layers[number].mlp, on_device(remaining(phase), device))


def healer(work: Work, model: Any, texts: Texts) -> Run:
    """Return the run in which adapters on the contracted `model` learn from the original."""
    settings = work.settings.healing
    torch.manual_seed(settings.seed)
    adapted = lora.add_adapters(model, settings).to(work.device)
    work.reporter.activity("loading the original to heal towards")
    original = work.load(devices.compute_dtype(work.device)).to(work.device)
    student = Objective.of(adapted, work.device, texts.own.pad, texts.own.validation[0])
    objective = healing.TowardsOriginal.between(student, original)
    return Run(
        objective=objective,
        optimizer=optimizer.make(adapted, settings, work.device),
        corpus=texts.own,
        settings=settings,
        roots=tuple(Path(root) for root in work.order.checkpoint_roots),
        keep_checkpoints=work.order.keep_checkpoints,
        reporter=work.reporter,
        stop=work.stop,
    )


def heal(work: Work, run: Run) -> LoopState:
    """Train the adapters from the newest checkpoint to the last step."""
    work.reporter.state("running", "healing")
    state = loop.resume(run)
    loop.begin(run, state)
    if state.baseline_loss is None:
        found = loop.evaluate_now(run, state, "measuring how far it is from the original")
        state.baseline_loss = found["loss"]
        run.reporter.points([found])
    if not state.step:
        torch.manual_seed(run.settings.seed)  # whichever phases were done by this attempt
    return loop.train(run, state)


def finished(work: Work, model: Any, found: Layout, pruned: dict[int, Phase], sample: list[int]) -> Finish:
    """Return what makes the model to publish: the weights as they were stored, less what goes, and what was healed.

    `model` is the contracted one as it was worked with, with its adapters where it was healed; it is given up.
    """

    def finish(staged: Path) -> tuple[Any, torch.dtype]:
        dtype = models.sixteen_bits(model, sample, work.device)
        work.reporter.activity("putting the contracted model together")
        base = work.load(dtype)
        repair(base, pruned, torch.device("cpu"))
        if found.gone:
            layout.remove_layers(base, found.gone)
        targeted.describe(base)
        if work.settings.heal_steps:
            healing.merge(base, model, dtype)
        models.release(model)
        devices.free_memory(work.device)
        return base, dtype

    return finish


def result_of(
    work: Work, before: dict[str, Any], after: dict[str, Any], sizes: tuple[int, int], layers: list[int]
) -> dict[str, Any]:
    """Return the job's result, in the fields of the fusion dialect and ours."""
    was, now = math.exp(before["own"]), math.exp(after["own"])
    whole, left = sizes
    return {
        "ppl_baseline": was,
        "ppl_final": now,
        "ppl_delta_pct": 100 * (now - was) / was,
        "params_before": whole,
        "params_after": left,
        "params_delta": left - whole,
        "param_ratio": left / whole,
        "function_preservation": None,
        "layout": work.settings.layout,
        "layers": layers,
        "eval_ppl_baseline": None if before["rows"] is None else math.exp(before["rows"]),
        "eval_ppl_final": None if after["rows"] is None else math.exp(after["rows"]),
        "healed_steps": work.settings.heal_steps,
    }


def begin(order: Order, reporter: Reporter, stop: StopFlag) -> Work:
    """Return what every phase needs. Raises what loading a tokenizer raises, RuntimeError for a device torch lacks."""
    settings = ContractHyperparams.model_validate(order.hyperparams)
    if settings.deterministic:
        devices.be_deterministic()
    device = devices.select(order.device)
    tokenizer = models.load_tokenizer(Path(order.model_path))
    phases = Phases([Path(root) for root in order.checkpoint_roots], reporter.log)
    progress = Progress(reporter, alone=not settings.heal_steps)
    return Work(order, settings, device, tokenizer, phases, reporter, stop, progress)


def run_job(order: Order, reporter: Reporter, stop: StopFlag) -> None:
    """Carry out a contract order from start, newest phase or checkpoint to the published model."""
    work = begin(order, reporter, stop)
    phases, settings, peak = work.phases, work.settings, Peak(work.device)
    rows = reported_rows(work)  # before the model, so that a bad row costs nobody the card
    reporter.state("staging", "loading the model")
    model = work.load(devices.compute_dtype(work.device)).to(work.device)
    layout.check(model, settings)
    model.requires_grad_(False)
    whole, held = model.num_parameters(), str(model.dtype).removeprefix("torch.")
    reporter.log(f"{order.model_name}: {whole:,} parameters in {held} on {work.device}.")
    peak.passed("loading")

    reporter.state("running", "calibrating")
    text = phases.through("text", lambda: write(work, model))
    texts = Texts.of(text.tensors["ids"].tolist(), rows, corpora.pad_id(work.tokenizer))
    work.go_on()
    before = phases.through("baseline", lambda: baseline(work, model, texts))
    work.go_on()
    chosen = phases.through("choose", lambda: choose(work, model, texts))
    found = Layout(*(tuple(chosen.facts[name]) for name in ("counts", "gone", "scores")))
    peak.passed("calibration")
    work.go_on()

    # A choice that an earlier version made says nothing of steps, nor did it tell the screens.
    steps_after = chosen.facts.get(STEPS_AFTER, 0)
    pruned = {} if found.gone else prune(work, model, found, texts, steps_after=steps_after)
    if found.gone:
        layout.remove_layers(model, found.gone)
    targeted.describe(model)
    peak.passed("pruning")
    work.go_on()

    left, state = model.num_parameters(), LoopState()
    if settings.heal_steps:
        run = healer(work, model, texts)
        state = heal(work, run)
        model = healing.healed(run)
        peak.passed("healing")
    work.progress.tell("end", 0, "evaluating the contracted model")
    begun = time.monotonic()
    after = judged(work, model, texts)
    seconds = [phase.facts["seconds"] for phase in (text, before, chosen, *pruned.values())]
    result = {
        **result_of(work, before.facts, after, (whole, left), found.processed),
        "loss_final": after["own"] if state.train_loss is None else state.train_loss,
        "gpu_seconds": sum(seconds) + state.seconds + time.monotonic() - begun,
        "tokens_processed": settings.calibration_sequences * settings.seq_len + state.tokens,
    }
    work.progress.tell("end", 0.3, "writing the finished model")
    reporter.state("uploading", "writing the finished model")
    finish = finished(work, model, found, pruned, texts.calibration[0])
    publish(order, reporter, work.tokenizer, finish, result=result, curve=state.curve)
    peak.passed("publishing")
    if not phases.skipped:
        # An attempt behind another's phases knows nothing of the memory that those took.
        reporter.memory(peak.bytes, peak.phase)
    reporter.result(result)
