"""The finished model: adapter, merged 16-bit model, tokenizer, template and card, published by one rename."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch

from engine import atomic, manifest, resources
from engine.order import Order
from engine.trainer import models
from engine.trainer.card import card
from engine.trainer.reporter import Reporter

# Given the folder that will be the model's: returns the finished model and the 16-bit type to write it in. It may put
# more into the folder, and give up what it was made of.
Finish: TypeAlias = "Callable[[Path], tuple[Any, torch.dtype]]"


def publish(
    order: Order,
    reporter: Reporter,
    tokenizer: Any,
    finish: Finish,
    *,
    result: dict[str, Any],
    curve: list[tuple[int, float]],
) -> None:
    """Write the model of a job and report it. Raises NoSpace, DiskFailed, with nothing half done left behind."""
    final = Path(order.output_path)
    # Those of attempts that died while they wrote are of no use to anyone.
    for left in final.parent.glob(f".{final.name}.stage-*"):
        atomic.discard(left)
    staged = final.with_name(f".{final.name}.stage-{order.fence}")
    with atomic.telling(f"publishing the model {order.output_name}", final.parent):
        try:
            _publish(order, reporter, tokenizer, staged, finish, outcome={"curve": curve, "result": result})
        except BaseException:
            atomic.discard(staged)
            raise


def _publish(
    order: Order, reporter: Reporter, tokenizer: Any, staged: Path, finish: Finish, *, outcome: dict[str, Any]
) -> None:
    final = Path(order.output_path)
    params = int(outcome["result"]["params_after"])
    resources.need_space(final.parent, 2 * params, f"the model {order.output_name}")
    atomic.step(staged.mkdir, mode=0o700)
    model, dtype = finish(staged)
    reporter.activity("writing the finished model")
    models.save(model, tokenizer, staged, dtype)
    facts = {
        "type": order.type,
        "job_id": order.job_id,
        "base_model": order.model_name,
        "dataset": order.dataset_name,
        "dataset_sha256": order.dataset_sha256,
        "hyperparams": order.hyperparams,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        **outcome,
    }
    atomic.write_json(staged / "training.json", facts)
    atomic.write_bytes(staged / "README.md", card(order.output_name, facts).encode())
    manifest.seal(staged, {"job_id": order.job_id, "params": params})
    # An earlier attempt may have died between publishing and saying so; this one made the same model.
    atomic.publish(staged, final, replace=True)
    reporter.model(
        {
            "id": order.output_id,
            "name": order.output_name,
            "family": model.config.model_type,
            "params": params,
            "precision": str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp"),
            "path": str(final),
        }
    )
