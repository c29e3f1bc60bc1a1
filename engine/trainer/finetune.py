"""The finetune job: load, adapt with LoRA (or train every weight), judge before and after, publish the model.

LoRA: Hu et al. 2021, arXiv 2106.09685. Adapters sit on every linear layer but the head.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch

from engine import atomic, manifest, resources
from engine.order import Order
from engine.specs import FinetuneHyperparams
from engine.trainer import data, evaluate, loop, models
from engine.trainer import device as devices
from engine.trainer.checkpoint import LoopState, trained_parameters
from engine.trainer.data import Corpus
from engine.trainer.loop import Run, StopFlag
from engine.trainer.reporter import Reporter


def add_adapters(model: Any, settings: FinetuneHyperparams) -> Any:
    """Freeze `model` and put an adapter on each of its linear layers."""
    # Imported late: it takes longer than torch and transformers together, and a full fine-tune needs none of it.
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def prepare(order: Order, settings: FinetuneHyperparams, reporter: Reporter) -> tuple[Any, Any, Corpus, torch.device]:
    """Return (model on the device, tokenizer, corpus, device). Raises what loading raises."""
    device = devices.select(order.device)
    tokenizer = models.load_tokenizer(Path(order.model_path))
    if models.ensure_chat_template(tokenizer):
        reporter.log(f"{order.model_name} has no chat template; ChatML is used and saved with the model.")
    reporter.state("staging", "reading the dataset")
    corpus = data.load(
        Path(order.dataset_path),
        tokenizer,
        seq_len=settings.seq_len,
        val_fraction=settings.val_fraction,
        seed=settings.seed,
    )
    fill = corpus.training_tokens / (len(corpus.training) * settings.seq_len)
    reporter.log(
        f"{corpus.training_rows} rows to train on ({corpus.training_tokens:,} tokens in {len(corpus.training)} packed "
        f"sequences, {fill:.0%} full), {len(corpus.validation_rows)} held out, {corpus.truncated_rows} truncated."
    )
    reporter.activity("loading the model")
    # Weights that learn are kept in fp32: bf16 has too few digits for small updates to add up.
    dtype = torch.float32 if settings.training_type == "full" else devices.compute_dtype(device)
    model = models.load_model(Path(order.model_path), dtype)
    torch.manual_seed(settings.seed)
    if settings.training_type == "lora":
        model = add_adapters(model, settings)
    model.to(device)
    learning = sum(parameter.numel() for parameter in trained_parameters(model).values())
    reporter.log(
        f"{order.model_name}: {models.count_parameters(model):,} parameters in {str(dtype).removeprefix('torch.')} "
        f"on {device}, {learning:,} of them learn."
    )
    return model, tokenizer, corpus, device


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
    before, after = math.exp(state.baseline_loss or 0.0), math.exp(state.eval_loss or 0.0)
    return {
        "ppl_baseline": before,
        "ppl_final": after,
        "ppl_delta_pct": 100 * (after - before) / before,
        "loss_final": state.train_loss,
        "params_before": params,
        "params_after": params,
        "params_delta": 0,
        "function_preservation": None,
        "gpu_seconds": state.seconds,
        "tokens_processed": state.tokens,
        "truncated_rows": run.corpus.truncated_rows,
        "rows_trained": run.corpus.training_rows,
        "rows_held_out": len(run.corpus.validation_rows),
        **state.samples,
    }


def publish(order: Order, run: Run, tokenizer: Any, state: LoopState) -> dict[str, Any]:
    """Write adapter, merged model and card, publish them by one rename, and return the result."""
    final = Path(order.output_path)
    # Those of attempts that died while they wrote are of no use to anyone.
    for left in final.parent.glob(f".{final.name}.stage-*"):
        shutil.rmtree(left, ignore_errors=True)
    staged = final.with_name(f".{final.name}.stage-{order.fence}")
    try:
        return _publish(order, run, tokenizer, state, staged)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _publish(order: Order, run: Run, tokenizer: Any, state: LoopState, staged: Path) -> dict[str, Any]:
    final, model = Path(order.output_path), run.model
    size = 2 * models.count_parameters(model)
    resources.need_space(final.parent, size, f"the model {order.output_name}")
    staged.mkdir(mode=0o700, parents=True)
    dtype = models.sixteen_bits(model, next(run.corpus.validation_batches(1)), run.device)
    if run.settings.training_type == "lora":
        model.save_pretrained(staged / "adapter", safe_serialization=True)
        # Merged in fp32 onto the unquantised base, then rounded once: added up in bf16, small updates vanish.
        model = model.to("cpu", torch.float32).merge_and_unload()
    params = models.count_parameters(model)
    result = result_of(run, state, params)
    models.save(model, tokenizer, staged, dtype)
    facts = {
        "type": order.type,
        "job_id": order.job_id,
        "base_model": order.model_name,
        "dataset": order.dataset_name,
        "dataset_sha256": order.dataset_sha256,
        "hyperparams": order.hyperparams,
        "versions": models.versions(),
        "result": result,
    }
    models.write_card(staged, title=order.output_name, facts=facts)
    manifest.seal(staged, {"job_id": order.job_id, "params": params})
    if final.exists():
        # An earlier attempt died between publishing and saying so; this one made the same model.
        atomic.remove_tree(final)
    atomic.publish(staged, final)
    run.reporter.model(
        {
            "id": order.output_id,
            "name": order.output_name,
            "family": model.config.model_type,
            "params": params,
            "precision": "fp16" if dtype == torch.float16 else "bf16",
            "path": str(final),
        }
    )
    return result


def run_job(order: Order, reporter: Reporter, stop: StopFlag) -> None:
    """Carry out a finetune order from start or newest checkpoint to the published model."""
    settings = FinetuneHyperparams.model_validate(order.hyperparams)
    model, tokenizer, corpus, device = prepare(order, settings, reporter)
    run = Run(
        model=model,
        optimizer=loop.make_optimizer(model, settings, device),
        corpus=corpus,
        settings=settings,
        device=device,
        roots=tuple(Path(root) for root in order.checkpoint_roots),
        keep_checkpoints=order.keep_checkpoints,
        reporter=reporter,
        stop=stop,
    )
    reporter.state("running", "training")
    state = loop.resume(run)
    judge_baseline(run, tokenizer, state)
    loop.train(run, state)
    reporter.activity("writing a sample")
    _, prompt = evaluate.sample_prompt(tokenizer, corpus.validation_rows[0])
    state.samples["sample_after"] = evaluate.sample(run.model, tokenizer, prompt, device)
    reporter.state("uploading", "writing the finished model")
    result = publish(order, run, tokenizer, state)
    reporter.result(result)
