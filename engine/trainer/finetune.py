"""The finetune job: load, adapt with LoRA (or train every weight), judge before and after, publish the model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.jobs.hyperparams import FinetuneHyperparams
from engine.order import Order
from engine.trainer import evaluate, loop, lora, models, optimizer, preparing
from engine.trainer.checkpoint import LoopState
from engine.trainer.data.corpora import Corpus
from engine.trainer.objective import Objective
from engine.trainer.peak import Peak
from engine.trainer.publish import publish
from engine.trainer.reporter import Reporter
from engine.trainer.run import Run, StopFlag, outcome_of


def prepare(order: Order, settings: FinetuneHyperparams, reporter: Reporter) -> tuple[Objective, Any, Corpus, int]:
    """Return (objective with the model on its device, tokenizer, corpus, parameters). Raises what loading raises."""
    ready = preparing.read(order, settings, reporter)
    model = preparing.load(order, settings, reporter, ready.device)
    size = model.num_parameters()
    reporter.log(f"{order.model_name}: {size:,} parameters.")
    if settings.training_type == "lora":
        model = lora.add_adapters(model, settings).to(ready.device)
    return preparing.objective(model, ready, settings, reporter), ready.tokenizer, ready.corpus, size


def settled(settings: FinetuneHyperparams, corpus: Corpus, reporter: Reporter) -> FinetuneHyperparams:
    """Return the settings with the number of steps that epochs come to over these rows, and say it."""
    if settings.epochs is None:
        return settings
    count, size = len(corpus.training), settings.batch_size * settings.grad_accum
    settings = settings.over(count)
    reporter.steps(settings.steps)
    reporter.log(
        f"{settings.epochs:g} epoch{'s' * (settings.epochs != 1)} of {count:,} sequences, {size:,} a step: "
        f"{settings.steps:,} steps."
    )
    return settings


def judge_baseline(run: Run, tokenizer: Any, state: LoopState) -> None:
    """Measure loss and a sample before the first step; a resumed run has them in its state."""
    if state.baseline_loss is not None:
        return
    point = loop.evaluate_now(run, state, "evaluating the model as it is")
    state.baseline_loss = point["loss"]
    run.reporter.points([point])
    shown, prompt = evaluate.sample_prompt(tokenizer, run.corpus.validation_rows[0])
    state.samples = {"sample_prompt": shown, "sample_before": evaluate.sample(run.model, tokenizer, prompt, run.device)}


def result_of(run: Run, state: LoopState, params: int) -> dict[str, Any]:
    """Return the job's result, in the fields of the fusion dialect and ours. Fine-tuning adds no parameter."""
    sizes = {"params_before": params, "params_after": params, "params_delta": 0}
    return {**outcome_of(run, state), **sizes, "function_preservation": None}


def finished(order: Order, run: Run, settings: FinetuneHyperparams, staged: Path) -> tuple[Any, torch.dtype]:
    """Return the model to publish and its type; adapters are saved in `staged` and merged. The run's model is given up.

    Adapters are merged onto the weights as they were stored, never onto what 4 bits left of them.
    """
    dtype = models.sixteen_bits(run.model, run.corpus.validation[0][0].ids, run.device)
    if settings.training_type == "full":
        return run.model, dtype
    run.optimizer.state.clear()
    run.reporter.activity("merging the adapter into the model")
    return lora.merged(run.model, Path(order.model_path), staged / "adapter", dtype), dtype


def run_job(order: Order, reporter: Reporter, stop: StopFlag) -> None:
    """Carry out a finetune order from start or newest checkpoint to the published model."""
    settings = FinetuneHyperparams.model_validate(order.hyperparams)
    objective, tokenizer, corpus, params = prepare(order, settings, reporter)
    settings = settled(settings, corpus, reporter)
    peak = Peak(objective.device)
    peak.passed("loading")
    run = Run(
        objective=objective,
        optimizer=optimizer.make(objective.model, settings, objective.device),
        corpus=corpus,
        settings=settings,
        roots=tuple(Path(root) for root in order.checkpoint_roots),
        keep_checkpoints=order.keep_checkpoints,
        reporter=reporter,
        stop=stop,
    )
    reporter.state("running", "training")
    state = loop.resume(run)
    loop.begin(run, state)
    judge_baseline(run, tokenizer, state)
    peak.passed("evaluation")
    began = state.step
    state = loop.take_best(run, loop.train(run, state))
    peak.passed("training")
    reporter.activity("writing a sample")
    _, prompt = evaluate.sample_prompt(tokenizer, corpus.validation_rows[0])
    state.samples["sample_after"] = evaluate.sample(run.model, tokenizer, prompt, run.device)
    reporter.state("uploading", "writing the finished model")
    result = result_of(run, state, params)
    publish(order, reporter, tokenizer, partial(finished, order, run, settings), result=result, curve=state.curve)
    peak.passed("publishing")
    if state.step > began:
        # A run that was resumed after its last step knows nothing of the memory that its steps took.
        reporter.memory(peak.bytes, peak.phase)
    reporter.result(result)
