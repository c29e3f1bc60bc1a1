"""The model that a job starts from which starts from a checkpoint: made once, by its first worker that gets so far.

The rule: it is a published folder like any other model's, whole or not there, so that every attempt after goes on from
the same weights; the checkpoint is let go only when it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine import atomic, manifest, pins
from engine.errors import EngineError
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.manifest import Damaged
from engine.order import Order, Start
from engine.trainer import checkpoint, lora, models
from engine.trainer.publish import staged_for
from engine.trainer.reporter import Reporter

CPU = torch.device("cpu")


def make(order: Order, reporter: Reporter) -> None:
    """See to it that the model of an order that starts from a checkpoint lies at its `model_path`.

    Raises EngineError where the checkpoint is damaged or gone before there is one; NoSpace, DiskFailed.
    """
    start, final = order.start, Path(order.model_path)
    if start is None:
        return
    if not _stands(final, reporter):
        reporter.state("staging", f"making a model of the checkpoint of step {start.step}")
        _make(order, start, final, reporter.activity)
        reporter.log(f"Starts from the checkpoint of step {start.step} of {start.job_name}.")
    if start.directory:
        with atomic.telling("letting go of the checkpoint", Path(start.directory)):
            pins.unpin(Path(start.directory), for_job=order.job_id)


def _stands(final: Path, reporter: Reporter) -> bool:
    """Say whether the model was made by an earlier attempt and is as that one left it."""
    if not final.exists():
        return False
    reporter.state("staging", "checking the model to start from")
    try:
        manifest.verify(final)
    except Damaged as damage:
        reporter.log(f"The model to start from is damaged and made anew: {damage}.", "error")
        return False
    return True


def _make(order: Order, start: Start, final: Path, tell: Callable[[str], object]) -> None:
    directory = Path(start.directory)
    what = f"The checkpoint of step {start.step} of the job {start.job_name}"
    if not start.directory:
        raise EngineError(f"The checkpoint that {order.output_name} starts from is gone. Start from another.")
    try:
        manifest.verify(directory)
    except Damaged as damage:
        raise EngineError(f"{what} is damaged ({damage}). Start from another one.") from None
    settings = FinetuneHyperparams.model_validate(start.hyperparams)
    model = models.load_model(Path(start.model_path), torch.float32 if settings.training_type == "full" else "auto")
    params = model.num_parameters()
    with staged_for(final, order.fence, "the model to start from", params=params) as staged:
        tell(f"merging the checkpoint of step {start.step} into its model")
        learned, dtype = _learned(model, start, settings, staged)
        tell("writing the model to start from")
        models.save(learned, _tokenizer(start), staged, dtype)
        atomic.discard(staged / "adapter")
        manifest.seal(staged, {"job_id": order.job_id, "checkpoint_id": start.checkpoint_id, "params": params})
        # A damaged one that an earlier attempt made gives way.
        atomic.publish(staged, final, replace=True)


def _tokenizer(start: Start) -> Any:
    tokenizer = models.load_tokenizer(Path(start.model_path))
    models.ensure_chat_template(tokenizer)
    return tokenizer


def _learned(model: Any, start: Start, settings: FinetuneHyperparams, staged: Path) -> tuple[Any, torch.dtype]:
    """Return `model` with what the checkpoint has learned, as one model in 16 bits, and their type."""
    full = settings.training_type == "full"
    if not full:
        model = lora.add_adapters(model, settings)
    checkpoint.restore_weights(Path(start.directory), model)
    ids = _tokenizer(start)(models.LOOKED_AT).input_ids
    dtype = models.sixteen_bits(model.eval(), ids, CPU)
    return (model if full else lora.merged(model, Path(start.model_path), staged / "adapter", dtype)), dtype
