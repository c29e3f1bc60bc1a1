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
from engine.trainer.reporter import Reporter

CURVE_ROWS = 30

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


def card(title: str, facts: dict[str, Any]) -> str:
    """Return a model card: what was trained on what, with which settings and versions, and what came of it."""
    result = facts["result"]
    lines = [f"# {title}", "", f"Made with fusion-tui by a `{facts['type']}` job.", ""]
    for key in ("base_model", "dataset", "dataset_sha256"):
        lines.append(f"- {key.replace('_', ' ')}: `{facts[key]}`")
    lines += [
        f"- perplexity on {result['rows_held_out']} held-out rows: {result['ppl_baseline']:.3f} before, "
        f"{result['ppl_final']:.3f} after ({result['ppl_delta_pct']:+.1f} %)",
        f"- trained on {result['rows_trained']:,} rows, {result['tokens_processed']:,} tokens "
        f"in {result['gpu_seconds']:,.0f} s; {result['truncated_rows']} rows truncated to seq_len",
        f"- parameters: {result['params_after']:,}",
        "",
    ]
    if facts["hyperparams"]["training_type"] == "lora":
        lines += [
            "The merged model is in this folder; the adapter alone is in `adapter/`, for peft.",
            "",
        ]
    lines += ["## Held-out loss", "", *_table(("step", "loss (nats per token)"), _thinned(facts["curve"])), ""]
    lines += ["## Settings as resolved", "", *_table(("setting", "value"), list(facts["hyperparams"].items())), ""]
    lines += ["## Versions", "", *(f"- {name} {number}" for name, number in facts["versions"].items()), ""]
    return "\n".join(lines)


def _table(head: tuple[str, str], rows: list[tuple[Any, Any]]) -> list[str]:
    cells = [(str(left), f"{right:.4f}" if head[1].startswith("loss") else str(right)) for left, right in rows]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {left} | {right} |" for left, right in cells)]


def _thinned(curve: list[tuple[int, float]]) -> list[tuple[Any, Any]]:
    """Return at most 30 points of a curve, its first and last among them."""
    if len(curve) <= CURVE_ROWS:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (CURVE_ROWS - 1))] for i in range(CURVE_ROWS)]
