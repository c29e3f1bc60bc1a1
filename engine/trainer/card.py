"""The card of a finished model: what was done to what, with which settings and versions, and what came of it.

The rule: every line is made of the facts in `training.json` beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

CURVE_ROWS = 30


def card(title: str, facts: dict[str, Any]) -> str:
    """Return a model's README in Markdown, for the facts of its job."""
    lines = [f"# {title}", "", f"Made with fusion-tui by a `{facts['type']}` job.", ""]
    lines += [f"- {line}" for line in _facts(facts)] + [""]
    if facts["hyperparams"].get("training_type") == "lora":
        lines += ["The merged model is in this folder; the adapter alone is in `adapter/`, for peft.", ""]
    if facts["curve"]:
        lines += ["## Held-out loss", "", *_table(("step", "loss (nats per token)"), _thinned(facts["curve"])), ""]
    lines += ["## Settings as resolved", "", *_table(("setting", "value"), list(facts["hyperparams"].items())), ""]
    lines += ["## Versions", "", *(f"- {name} {number}" for name, number in facts["versions"].items()), ""]
    return "\n".join(lines)


def _facts(facts: dict[str, Any]) -> Iterator[str]:
    result = facts["result"]
    for key in ("base_model", "dataset", "dataset_sha256"):
        if facts[key]:
            yield f"{key.replace('_', ' ')}: `{facts[key]}`"
    if start := facts.get("start"):
        yield f"started from: checkpoint `{start['checkpoint_id']}`, step {start['step']} of the run {start['job']}"
    before, after, moved = result["ppl_baseline"], result["ppl_final"], result["ppl_delta_pct"]
    judged = f"{result['rows_held_out']} held-out rows" if "rows_held_out" in result else "text of the original's own"
    yield f"perplexity on {judged}: {before:.3f} before, {after:.3f} after ({moved:+.1f} %)"
    if result.get("self_ppl_final") is not None:
        yield (
            f"perplexity on text of the original's own: {result['self_ppl_baseline']:.3f} before, "
            f"{result['self_ppl_final']:.3f} after"
        )
    if result.get("rows_trained"):
        yield (
            f"trained on {result['rows_trained']:,} rows, {result['tokens_processed']:,} tokens "
            f"in {result['gpu_seconds']:,.0f} s; {result['truncated_rows']} rows truncated to seq_len"
        )
    if result["params_delta"]:
        yield f"parameters: {result['params_before']:,} before, {result['params_after']:,} after"
    else:
        yield f"parameters: {result['params_after']:,}"
    if result.get("function_preservation") is not None:
        yield f"growth moved the logits by {result['function_preservation']:.1e} of their size before training"


def _table(head: tuple[str, str], rows: list[tuple[Any, Any]]) -> list[str]:
    cells = [(str(left), f"{right:.4f}" if head[1].startswith("loss") else str(right)) for left, right in rows]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {left} | {right} |" for left, right in cells)]


def _thinned(curve: list[tuple[int, float]]) -> list[tuple[Any, Any]]:
    """Return at most 30 points of a curve, its first and last among them."""
    if len(curve) <= CURVE_ROWS:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (CURVE_ROWS - 1))] for i in range(CURVE_ROWS)]
