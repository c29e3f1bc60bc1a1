"""Values as people read them: states, numbers, times, events.

The rule: pure functions of their arguments; text that came from outside is cleaned here and never read as markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.text import Text

from engine.errors import EngineError
from engine.plans.recommend import Value
from engine.resources import size_text
from engine.running import evidence
from engine.running.evidence import Evidence
from engine.service import Event, Job, StoreError, states
from engine.text import clean_text
from fusion_tui.messages import Overview

# A glyph and a word for each state, because colour alone says nothing on half of the terminals.
_STATES: dict[str, tuple[str, str]] = {
    states.QUEUED: ("○", "yellow"),
    states.PROVISIONING: ("◔", "cyan"),
    states.STAGING: ("◑", "cyan"),
    states.RUNNING: ("●", "bold cyan"),
    states.CHECKPOINTING: ("◆", "bold cyan"),
    states.UPLOADING: ("▲", "bold cyan"),
    states.PREEMPTED: ("◌", "yellow"),
    states.COMPLETED: ("✓", "green"),
    states.FAILED: ("✗", "bold red"),
    states.CANCELLED: ("⊘", "dim"),
}
_STOPPING = ("◐", "bold yellow")
# Runs that the store calls worked on, with nobody at work.
_DEAD: dict[Evidence | None, str] = {"gone": "▲ worker gone", "lost": "▲ lost?"}


def clean(text: str) -> str:
    """Return text from outside as one line without control sequences."""
    return clean_text(text).replace("\n", " ").expandtabs(4)


def failure(error: Exception) -> str:
    """Return an error as a line for its user: our own errors are written for them, others tell their kind."""
    if isinstance(error, (EngineError, StoreError)):
        return clean(str(error))
    return clean(f"{type(error).__name__}: {error}")


def state(job: Job, seen: Evidence | None = None) -> Text:
    """Return a run's state: glyph and word. `seen` is what speaks for a run that the store calls worked on."""
    if seen in _DEAD:
        return Text(_DEAD[seen], style="bold red")
    stopping = job.stop_requested and not job.finished
    glyph, style = _STOPPING if stopping else _STATES.get(job.state, ("?", ""))
    return Text(f"{glyph} {'stopping' if stopping else job.state}", style=style)


def trouble(job: Job, seen: Evidence | None = None) -> str:
    """Return why a run failed, waits, or stands still; empty where it does none of these."""
    if job.error:
        return clean(job.error)
    if seen == "lost":
        # As long as a line at 80 columns takes.
        return "worker gone, no supervisor: S starts one; the run goes on from its checkpoint"
    if seen == "gone":
        return clean(evidence.WORDS[seen])
    if not job.hold or job.finished:
        return ""
    # What holds a run that has a worker is no waiting, and a chain's own words say whom it waits for.
    as_it_stands = job.state in states.ACTIVE or (job.after_id and job.hold.startswith("after:"))
    return clean(job.hold) if as_it_stands else f"waits: {clean(job.hold)}"


def bar(share: float, width: int) -> str:
    """Return a progress bar of `width` cells for a share between 0 and 1."""
    halves = round(min(max(share, 0.0), 1.0) * width * 2)
    return ("━" * (halves // 2) + "╸" * (halves % 2)).ljust(width, "┄")


def percent(share: float) -> str:
    """Return a share as whole percent; 100 only when it is done."""
    return f"{math.floor(share * 100 + 1e-9)}%"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with `digits` significant digits, or a dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{min(digits, 3) - 1}e}"
    whole = len(str(int(abs(value))))
    return f"{value:.{max(digits - whole, 0)}f}"


def count(value: float | None) -> str:
    """Return a count in short: 950, 1.2k, 3.4M."""
    if value is None:
        return "–"
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.0f}{unit}" if not unit or abs(value) >= 99.95 else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.0f}T"


def duration(seconds: float | None) -> str:
    """Return a time span in at most six characters: 42s, 3m10s, 2h05m, 3d04h."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    total = max(int(seconds), 0)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600:02d}h"


def age(seconds: float) -> str:
    """Return how long ago in at most four characters: now, 12m, 5h, 3d."""
    total = max(int(seconds), 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if total >= size:
            return f"{total // size}{unit}"
    return "now"


def window(advice: Value) -> str:
    """Return the window of a recommended value, and why: `59 … 177 · one to 3 passes over the data`."""
    if advice.low is None or advice.high is None:
        return advice.why
    low, high = (f"{one:.1e}" if isinstance(one, float) else str(one) for one in (advice.low, advice.high))
    return f"{low} … {high} · {advice.why}"


def how_far(job: Job) -> str:
    """Return how far a run is: steps and percent, or where it makes no steps the share of its work alone."""
    return f"step {job.step}/{job.total_steps} · {percent(job.progress)}" if job.total_steps else percent(job.progress)


def eta(job: Job, seen: Evidence | None = None) -> str:
    """Return the time left of a working run."""
    return duration(job.eta_s) if job.state in states.ACTIVE and seen not in _DEAD else "–"


_EVENT_WORDS = {
    "stop_requested": "stop requested: the run finishes its step and saves",
    "save_requested": "checkpoint requested: the run saves at the end of its step",
    "delete_requested": "the run and all that it made are to be deleted",
    "delete_refused": "kept",
    "resume": "resumed",
    "hold": "waits",
    "checkpoint_damaged": "checkpoint damaged, set aside",
    "journal_damaged": "journal damaged, those lines are left out",
    "checkpoint": "checkpoint saved",
}

_DETAIL_WORDS = {"fence": "attempt", "why": "because"}


def _details(payload: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in payload.items() if value not in (None, "", {})}
    return ", ".join(f"{_DETAIL_WORDS.get(key, key.replace('_', ' '))} {_value(value)}" for key, value in kept.items())


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _oom(what: Mapping[str, Any]) -> str:
    return f"out of memory at step {what['step']}: going on with {what['rung']}, grad_accum {what['grad_accum']}"


def _spike(what: Mapping[str, Any]) -> str:
    why = "is no number" if what["why"] == "nan" else "stands out from the last steps"
    return f"step {what['step']} skipped: loss {_value(what['loss'])}, grad norm {_value(what['grad_norm'])} {why}"


def _memory(what: Mapping[str, Any]) -> str:
    planned = f", planned {size_text(what['planned_bytes'])}" if what.get("planned_bytes") else ""
    return f"took at most {size_text(what['peak_bytes'])} of memory ({what['phase']}{planned})"


def growth(blocks: int, units: int, share: float | None = None) -> str:
    """Return what a model grows by: `+8 layers, +64 neurons, +25 %`."""
    parts = [f"+{plural(blocks, 'layer')}" if blocks else "", f"+{plural(units, 'neuron')}" if units else ""]
    parts.append(f"{100 * share:+.3g} %" if share is not None else "")
    return ", ".join(part for part in parts if part)


def numbers(found: Sequence[int]) -> str:
    """Return numbers in short, stretches of three and more as one: `4, 7–12`."""
    stretches: list[list[int]] = []
    for one in found:
        if stretches and one == stretches[-1][-1] + 1:
            stretches[-1].append(one)
        else:
            stretches.append([one])
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in stretches)


def layers(found: Sequence[int]) -> str:
    """Return `layer 4`, `layers 4, 7–12`."""
    return f"layer{'s' if len(found) != 1 else ''} {numbers(found)}"


def _hold(what: Mapping[str, Any]) -> str:
    # The hold of a run in a chain says itself that it waits.
    return what["why"] if what["why"].startswith("after:") else f"waits (because {what['why']})"


def _diagnose(what: Mapping[str, Any]) -> str:
    added = growth(len(what["blocks"]), what["units"], what["planned"] / what["params"])
    behind = f", new layers behind {numbers(what['blocks'])}" if what["blocks"] else ""
    return f"{plural(len(what['layers']), 'layer')} scored: grows by {added}{behind}"


def _contract(what: Mapping[str, Any]) -> str:
    verbs = ("goes", "go") if what["layout"] == "depth" else ("loses neurons", "lose neurons")
    return f"layout {what['layout']}: {layers(what['layers'])} {verbs[len(what['layers']) != 1]}"


def _grow(what: Mapping[str, Any]) -> str:
    return f"grown: {preserved(what['change'])}, {100 * what['agreement']:.2f} % of the likeliest tokens stayed"


def preserved(change: float) -> str:
    """Return how far growth moved a model's answers, as the largest change of a logit over the largest logit."""
    return f"answers moved by {change:.1e}" if change else "answers unchanged"


def _cycle(what: Mapping[str, Any]) -> str:
    words = f"turn {what['turn']}, cycle {what['cycle']} done at step {what['step']}: perplexity {number(what['ppl'])}"
    return f"{words}, on the original's own text {number(what['self_ppl'])}"


# Events whose payload reads as a sentence. A worker of another version may tell less: then it is shown as it is.
_SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "oom": _oom,
    "spike": _spike,
    "memory": _memory,
    "early_stop": lambda what: f"stopped early at step {what['step']}: the best was step {what['best_step']}",
    "rollback": lambda what: f"back to step {what['step']} with {what['lr_scale']:g} of the learning rate",
    "advice": lambda what: str(what["text"]),
    "hold": _hold,
    "diagnose": _diagnose,
    "grow": _grow,
    "cycle": _cycle,
    "contract": _contract,
}


def event(entry: Event) -> str:
    """Return what happened in words."""
    payload = dict(entry.payload)
    if entry.kind in _SENTENCES:
        try:
            aside = "comparison without growth: " if "of" in payload else ""
            return clean(aside + _SENTENCES[entry.kind](payload))
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            pass
    if entry.kind == "state":
        before, after = payload.pop("from", None), payload.pop("to", "?")
        words = f"{before} → {after}" if before else f"submitted, {after}"
    else:
        words = _EVENT_WORDS.get(entry.kind, entry.kind.replace("_", " "))
    details = _details(payload)
    return clean(f"{words} ({details})" if details else words)


def plural(amount: int, noun: str) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def unfinished(counts: Mapping[str, int]) -> int:
    """Return how many runs have not ended."""
    return sum(amount for name, amount in counts.items() if name not in states.FINISHED)


def farewell(overview: Overview) -> str:
    """Return the line that the app leaves behind. Of runs it says nothing where none were ever read."""
    if not overview.loaded:
        unread = "The job store could not be read; fusion-tui doctor tells more."
        return unread if overview.error else "Left before the job store was read."
    unended, supervision = unfinished(overview.counts), overview.supervision
    if not unended:
        return "Nothing is running. fusion-tui brings your runs back."
    alone = supervision is not None and not supervision.running
    keep = min(overview.alive, unended) if alone else max(unended - overview.lost, 0)
    wait = unended - keep
    going = f"{plural(keep, 'run')} {'keeps' if keep == 1 else 'keep'} going"
    if not wait:
        return f"{going}; fusion-tui brings {'it' if keep == 1 else 'them'} back"
    waiting = f"{wait if keep else plural(wait, 'run')} {'waits' if wait == 1 else 'wait'} for a supervisor"
    return f"{f'{going}, ' if keep else ''}{waiting}; fusion-tui starts one"
