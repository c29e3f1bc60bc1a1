"""The finished model: adapter, merged 16-bit model, tokenizer, template and card, published by one rename."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch

from engine import atomic, manifest, resources
from engine.order import Order, Start
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
    outcome = {"curve": curve, "result": result}
    final, params = Path(order.output_path), int(result["params_after"])
    with staged_for(final, order.fence, f"the model {order.output_name}", params=params) as staged:
        _publish(order, reporter, tokenizer, staged, finish, outcome=outcome)


@contextmanager
def staged_for(final: Path, fence: int, what: str, *, params: int) -> Iterator[Path]:
    """Yield an empty folder for `what`, a model of so many parameters in 16 bits that will lie at `final`.

    What is left in it after an error goes. Raises NoSpace, DiskFailed.
    """
    # Those of attempts that died while they wrote are of no use to anyone.
    for left in final.parent.glob(f".{final.name}.stage-*"):
        atomic.discard(left)
    staged = final.with_name(f".{final.name}.stage-{fence}")
    with atomic.telling(f"publishing {what}", final.parent):
        resources.need_space(final.parent, 2 * params, what)
        try:
            atomic.step(staged.mkdir, mode=0o700)
            yield staged
        except BaseException:
            atomic.discard(staged)
            raise


def _start(start: Start) -> dict[str, Any]:
    """Return what a model's record says of the checkpoint that its job started from."""
    return {"checkpoint_id": start.checkpoint_id, "job_id": start.job_id, "job": start.job_name, "step": start.step}


def _publish(
    order: Order, reporter: Reporter, tokenizer: Any, staged: Path, finish: Finish, *, outcome: dict[str, Any]
) -> None:
    final = Path(order.output_path)
    params = int(outcome["result"]["params_after"])
    model, dtype = finish(staged)
    reporter.activity("writing the finished model")
    models.save(model, tokenizer, staged, dtype)
    facts = {
        "type": order.type,
        "job_id": order.job_id,
        "base_model": order.model_name,
        **({"start": _start(order.start)} if order.start else {}),
        "dataset": ", ".join(each.name for each in order.datasets),
        "dataset_sha256": ", ".join(each.sha256 for each in order.datasets),
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
