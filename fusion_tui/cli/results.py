"""What a run came to, as a person reads it.

The rule: a line for what a result has, and none for what its type of job does not report.
"""

from __future__ import annotations

from typing import Any

from fusion_tui.cli import plans
from fusion_tui.cli.watching import duration

# Perplexities of a result, with what they were measured on: before, in between where a model was grown, after.
_PERPLEXITIES = (
    ("perplexity", ("ppl_baseline", "ppl_after_growth", "ppl_final")),
    ("on its own text", ("self_ppl_baseline", "self_ppl_after_growth", "self_ppl_final")),
    ("on the dataset named for it", ("eval_ppl_baseline", "eval_ppl_final")),
    ("of the ungrown model, trained alike", ("ungrown_ppl_final",)),
    ("and on its own text", ("ungrown_self_ppl_final",)),
)


def _perplexities(result: dict[str, Any]) -> list[str]:
    lines = []
    for what, names in _PERPLEXITIES:
        values = [float(result[name]) for name in names if result.get(name) is not None]
        if values:
            change = f" ({100 * (values[-1] / values[0] - 1):+.1f} %)" if len(values) > 1 and values[0] else ""
            lines.append(f"{what} {' → '.join(f'{value:.2f}' for value in values)}{change}")
    if result.get("layout"):  # of a contract job, which has no rows of its own to be judged by
        lines[0] = lines[0].replace("perplexity", "perplexity on its own text", 1)
    return lines


def _size(result: dict[str, Any]) -> str:
    before, after = result.get("params_before"), result["params_after"]
    if before is None or before == after:
        return f"{after:,} parameters"
    return f"{before:,} → {after:,} parameters ({100 * (after / before - 1):+.1f} %)"


def result_text(result: dict[str, Any]) -> str:
    """Return a result as a person reads it: what it has, type by type."""
    facts = [
        f"loss {result['loss_final']:.3f}" if result.get("loss_final") is not None else "",
        f"{result['tokens_processed']:,} tokens" if result.get("tokens_processed") else "",
        f"{duration(result['gpu_seconds'])} on the device" if result.get("gpu_seconds") is not None else "",
        _size(result) if result.get("params_after") is not None else "",
    ]
    lines = [*_perplexities(result), " · ".join(fact for fact in facts if fact)]
    if result.get("function_preservation") is not None:
        lines.append(f"grown without a change of its answers: {result['function_preservation']:.1e} at most")
    if memory := plans.memory_line(result["memory_planned_bytes"], result["memory_measured_bytes"]):
        lines.append(memory)
    if result["cost_usd"]:
        lines.append(f"cost ${result['cost_usd']:.2f}")
    return "\n".join(lines)
