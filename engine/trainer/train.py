"""The train job: diagnose, grow so that the answers stay, train what is new in turns and cycles, publish one model.

The rule: every phase before the first step is published when it is done, so that an attempt after a kill goes on
behind it and ends with the same model.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.jobs.hyperparams import TrainHyperparams
from engine.order import Order
from engine.plans import growth
from engine.trainer import device as devices
from engine.trainer import evaluate, loop, models, optimizer, preparing, selftext
from engine.trainer.checkpoint import LoopState
from engine.trainer.grow import diagnose, preservation, ungrown
from engine.trainer.grow.operators import Grown, Growth, check, room
from engine.trainer.grow.retention import Retention, documents
from engine.trainer.objective import Objective
from engine.trainer.optimizer import trained_parameters
from engine.trainer.peak import Peak
from engine.trainer.phases import Phase, Phases
from engine.trainer.preparing import Prepared
from engine.trainer.publish import publish
from engine.trainer.reporter import Reporter
from engine.trainer.run import Run, StopFlag, Stopped, outcome_of

PROBED_DOCUMENTS, PROBED_TOKENS = 16, 256  # that layers are scored on
OWN_TOKENS = 256  # at most, of a sequence that the model writes
OWN_SEQUENCES = (40, 320)  # at least, at most; one for each step between them
JUDGED_SHARE = 4  # one in so many of its own sequences judges what was forgotten; the others hold it back


@dataclass(frozen=True)
class Work:
    """What every phase of one job needs."""

    order: Order
    settings: TrainHyperparams
    ready: Prepared
    phases: Phases
    reporter: Reporter
    stop: StopFlag

    def go_on(self) -> None:
        """Raise Stopped where the run was asked to stop."""
        if self.stop.requested:
            raise Stopped


def write_own_text(model: Any, work: Work) -> Phase:
    """Let the model write the text that it is held to and judged by."""
    settings, ready = work.settings, work.ready
    least, most = OWN_SEQUENCES
    count = min(max(settings.total_steps, least), most) if settings.retain_weight else least
    length = min(settings.seq_len, OWN_TOKENS)

    def tell(done: int, whole: int) -> None:
        work.go_on()
        work.reporter.activity(f"the model writes text of its own: {done} of {whole} sequences")

    work.reporter.activity(f"the model writes text of its own: {count} sequences of {length} tokens")
    written = selftext.write(
        model, ready.tokenizer, ready.device, count=count, length=length, seed=settings.seed, tell=tell
    )
    return Phase(tensors={"ids": torch.tensor(written, dtype=torch.int32)})


def look(model: Any, work: Work) -> Phase:
    """Score the layers on rows of the dataset and decide where the model grows."""
    settings, ready, reporter = work.settings, work.ready, work.reporter
    reporter.activity("diagnosing: which layers work hardest on this data")
    model.requires_grad_(False)  # the scores take what they need; gradients of all weights would double the memory
    space = room(model)
    size = growth.size(space, settings.growth_ratio, settings.growth_shape)
    count = min(PROBED_DOCUMENTS, len(ready.corpus.training))
    probed = [one.ids[:PROBED_TOKENS] for pack in ready.corpus.sequences(0, count, settings.seed) for one in pack]
    found = diagnose.scores(model, [ids for ids in probed if len(ids) > 1][:PROBED_DOCUMENTS], ready.device)
    behind = diagnose.places(found, size.blocks)
    facts = {
        "layers": [one.document() for one in found],
        "blocks": list(behind),
        "units": size.units,
        "planned": size.added(space),
        "params": space.params,
    }
    reporter.event("diagnose", **facts)
    reporter.points([{"step": 0, "phase": "diagnose", "ts": time.time(), "loss": None}])
    reporter.log(_why(found, behind, size))
    return Phase(facts)


def _why(found: list[diagnose.LayerScore], behind: tuple[int, ...], size: growth.Size) -> str:
    best = sorted(found, key=lambda one: one.score, reverse=True)[:5]
    ranked = ", ".join(f"{one.layer} ({one.score:.2f})" for one in best)
    many = "layer behind layer" if len(behind) == 1 else "layers behind the layers"
    blocks = f"{size.blocks} new {many} {', '.join(map(str, behind))}" if behind else "no new layer"
    width = f"{size.units} new neurons in every MLP" if size.units else "no wider MLP"
    return (
        f"Grows by {blocks} and {width}. Layers that work hardest on this data, by influence, gradient and use of "
        f"neurons: {ranked}; new layers stand in the upper two thirds, spread, behind the best of each stretch."
    )


def judge(grown: Grown, objective: Objective, own: list[list[int]], work: Work) -> Phase:
    """Measure what growth changed, and what the model can do before and after it. Raises EngineError above 1e-4."""
    ready, reporter = work.ready, work.reporter
    reporter.activity("measuring that growth left the answers as they were")
    texts = (one.ids for pack in ready.corpus.sequences(0, len(ready.corpus.training), 0) for one in pack)
    kept = preservation.measure(grown, preservation.probe(texts, max(map(len, own))).to(ready.device))
    reporter.log(
        f"Growth moved the logits by {kept.change:.1e} of their size, KL {kept.kl:.1e} nats a token; "
        f"{kept.agreement:.2%} of the likeliest tokens stayed."
    )
    reporter.event("grow", **asdict(kept))
    kept.check()
    judged = documents(own)
    between = evaluate.watched("evaluating the model as it was", reporter, work.stop)
    shown, prompt = evaluate.sample_prompt(ready.tokenizer, ready.corpus.validation_rows[0])
    with grown.original() as original:
        before = evaluate.mean_loss(objective, ready.corpus.validation, 1, between)
        own_before = evaluate.mean_loss(objective, judged, 1)
        sample = evaluate.sample(original, ready.tokenizer, prompt, ready.device)
    between = evaluate.watched("evaluating the grown model", reporter, work.stop)
    after = evaluate.mean_loss(objective, ready.corpus.validation, 1, between)
    facts = {
        **asdict(kept),
        "loss_before": before,
        "loss_after": after,
        "own_loss_before": own_before,
        "own_loss_after": evaluate.mean_loss(objective, judged, 1),
        "samples": {"sample_prompt": shown, "sample_before": sample},
    }
    now = time.time()
    reporter.points(
        [
            {"step": 0, "phase": "eval", "ts": now, "loss": before},
            {"step": 0, "phase": "grow", "ts": now, "loss": after},
        ]
    )
    return Phase(facts)


@dataclass(frozen=True)
class Begun:
    """A model that has grown and learned nothing yet. Of the original's own text, `judged` tells what is forgotten and
    `held` holds it back."""

    grown: Grown
    objective: Objective
    judged: list[list[int]]
    held: list[list[int]]
    facts: dict[str, Any]


def result_of(run: Run, state: LoopState, facts: dict[str, Any], settings: TrainHyperparams) -> dict[str, Any]:
    """Return the job's result, in the fields of the fusion dialect and ours."""
    sequences = facts["ran"] * settings.batch_size * settings.grad_accum
    return {
        **outcome_of(run, state),
        "ppl_after_growth": math.exp(facts["loss_after"]),
        "self_ppl_baseline": math.exp(facts["own_loss_before"]),
        "self_ppl_after_growth": math.exp(facts["own_loss_after"]),
        "self_ppl_final": math.exp(facts["own_loss_final"]),
        "params_before": facts["params"],
        "params_after": facts["params"] + facts["added"],
        "params_delta": facts["added"],
        "function_preservation": facts["change"],
        "logit_kl": facts["kl"],
        "argmax_agreement": facts["agreement"],
        "blocks_added": len(facts["blocks"]),
        "neurons_added": facts["units"],
        "gpu_seconds": facts["phase_seconds"] + state.seconds,
        # As the dialect counts: every position of every sequence. What of it was text is beside it.
        "tokens_processed": sequences * settings.seq_len,
        "tokens_trained": state.tokens,
        **facts["ungrown"],
    }


@torch.no_grad()
def rounded(run: Run, state: LoopState) -> torch.dtype:
    """Round what was trained to the 16-bit type that it is saved in, judge it anew, and return the type.

    What is reported is then true of what is saved: a gain that grew from nothing (gemma2 and gemma3 hold it as one
    less, where bf16 has few digits) may lose a part of what it learned.
    """
    dtype = models.sixteen_bits(run.model, run.corpus.validation[0][0].ids, run.device)
    for parameter in trained_parameters(run.model).values():
        parameter.copy_(parameter.to(dtype))
    between = evaluate.watched("evaluating the model as it is saved", run.reporter, run.stop)
    state.eval_loss = evaluate.mean_loss(run.objective, run.corpus.validation, state.rung.batch_size, between)
    return dtype


def finished(order: Order, run: Run, begun: Begun, dtype: torch.dtype, staged: Path) -> tuple[Any, torch.dtype]:
    """Return the grown model as one stock model, and its 16-bit type. The run's weights are given up.

    What was trained is put onto the weights as they were stored, never onto what 4 bits left of them.
    """
    grown, settings = begun.grown, TrainHyperparams.model_validate(order.hyperparams)
    if settings.train_scope == "all":
        return grown.fold(), dtype
    trained = {name: parameter.detach().cpu() for name, parameter in grown.new_parameters().items()}
    run.optimizer.state.clear()
    models.release(run.model)
    devices.free_memory(run.device)
    run.reporter.activity("putting the new weights among the old ones")
    again = Grown(models.load_model(Path(order.model_path), dtype), grown.growth, seed=settings.seed)
    with torch.no_grad():
        for name, parameter in again.new_parameters().items():
            parameter.copy_(trained.pop(name))
    return again.fold(), dtype


def begin(run: Run, facts: dict[str, Any]) -> LoopState:
    """Return the state to train from: the newest checkpoint's, or a fresh one that knows where the model stands."""
    state = loop.resume(run)
    loop.begin(run, state)
    if state.baseline_loss is None:
        state.baseline_loss = facts["loss_before"]
        state.eval_loss = facts["loss_after"]
        state.curve.append((0, facts["loss_after"]))
        state.samples = dict(facts["samples"])
    return state


def tell_of_cycle(run: Run, judged: list[Any], settings: TrainHyperparams, state: LoopState) -> None:
    """Say at a cycle's end how the model does on the data and on its own text."""
    cycle = settings.cycle(state.step)
    turn, within = divmod(cycle - 1, settings.cycles)
    data, own = math.exp(state.eval_loss or 0.0), math.exp(evaluate.mean_loss(run.objective, judged, 1))
    run.reporter.log(
        f"Turn {turn + 1} of {settings.turns}, cycle {within + 1} of {settings.cycles}: held-out perplexity "
        f"{data:.4g}, on the original's own text {own:.4g}."
    )
    run.reporter.event("cycle", turn=turn + 1, cycle=within + 1, step=state.step, ppl=data, self_ppl=own)


def grow(work: Work, peak: Peak) -> Begun:
    """Go through the phases before the first step, or behind those that an attempt has finished."""
    order, settings, reporter, phases = work.order, work.settings, work.reporter, work.phases
    model = preparing.load(order, settings, reporter, work.ready.device)
    check(model)
    peak.passed("loading")
    reporter.state("running", "diagnosing")
    written = phases.through("selftext", lambda: write_own_text(model, work)).tensors["ids"].tolist()
    judged, held = written[::JUDGED_SHARE], [ids for number, ids in enumerate(written) if number % JUDGED_SHARE]
    compared = compare(work, model, judged) if settings.compare_ungrown else {}
    if compared:
        model = preparing.load(order, settings, reporter, work.ready.device)
    facts = dict(phases.through("diagnose", lambda: look(model, work)).facts)
    work.go_on()
    reporter.activity("growing")
    grown = Grown(model, Growth(tuple(facts["blocks"]), facts["units"]), seed=settings.seed)
    facts["added"] = sum(parameter.numel() for parameter in grown.new_parameters().values())
    if settings.train_scope == "all":
        model.requires_grad_(True)
    objective = preparing.objective(model, work.ready, settings, reporter)
    facts |= phases.through("grow", lambda: judge(grown, objective, judged, work)).facts
    peak.passed("evaluation")
    work.go_on()
    return Begun(grown, objective, judged, held, facts | {"ungrown": compared, "phase_seconds": phases.seconds})


def compare(work: Work, model: Any, judged: list[list[int]]) -> dict[str, Any]:
    """Return what training the ungrown model brings; `model` is given up for it."""
    settings = work.settings
    size = growth.size(room(model), settings.growth_ratio, settings.growth_shape)
    rival = ungrown.settings_of(settings, model, size.added(room(model)))
    models.release(model)

    def work_it_out() -> Phase:
        return ungrown.compare(work.order, rival, work.ready, judged, reporter=work.reporter, stop=work.stop)

    facts = work.phases.through("ungrown", work_it_out).facts
    ungrown.forget(work.order)
    return {name: value for name, value in facts.items() if name.startswith("ungrown")}


def make_run(work: Work, begun: Begun) -> Run:
    """Return what the loop works with."""
    settings, grown, objective = work.settings, begun.grown, begun.objective
    penalty = None
    if settings.retain_weight:
        penalty = Retention(grown, objective, begun.held, weight=settings.retain_weight, seed=settings.seed)
    old = trained_parameters(grown.model).keys() - grown.new_parameters().keys()
    run = Run(
        objective=objective,
        optimizer=optimizer.make(grown.model, settings, objective.device, slow=old),
        corpus=work.ready.corpus,
        settings=settings,
        roots=tuple(Path(root) for root in work.order.checkpoint_roots),
        keep_checkpoints=work.order.keep_checkpoints,
        reporter=work.reporter,
        stop=work.stop,
        penalty=penalty,
    )
    return replace(run, on_cycle=partial(tell_of_cycle, run, documents(begun.judged), settings))


def run_job(order: Order, reporter: Reporter, stop: StopFlag) -> None:
    """Carry out a train order from start or newest phase or checkpoint to the published model."""
    settings = TrainHyperparams.model_validate(order.hyperparams)
    ready = preparing.read(order, settings, reporter)
    peak = Peak(ready.device)
    phases = Phases([Path(root) for root in order.checkpoint_roots], reporter.log)
    work = Work(order, settings, ready, phases, reporter, stop)
    begun = grow(work, peak)
    run = make_run(work, begun)
    torch.manual_seed(settings.seed)  # whichever phases were done by this attempt
    state = begin(run, begun.facts)
    first = state.step
    state = loop.train(run, state)
    begun.facts["ran"] = state.step
    state = loop.take_best(run, state)
    peak.passed("training")
    dtype = rounded(run, state)
    reporter.activity("evaluating on the original's own text")
    begun.facts["own_loss_final"] = evaluate.mean_loss(run.objective, documents(begun.judged), 1)
    _, prompt = evaluate.sample_prompt(ready.tokenizer, ready.corpus.validation_rows[0])
    state.samples["sample_after"] = evaluate.sample(run.model, ready.tokenizer, prompt, ready.device)
    reporter.state("uploading", "writing the finished model")
    result = result_of(run, state, begun.facts, settings)
    finish = partial(finished, order, run, begun, dtype)
    publish(order, reporter, ready.tokenizer, finish, result=result, curve=state.curve)
    peak.passed("publishing")
    if state.step > first and not phases.skipped:
        # An attempt behind another's phases or steps knows nothing of the memory that those took.
        reporter.memory(peak.bytes, peak.phase)
    reporter.result(result)
