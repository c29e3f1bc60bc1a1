"""Settings to start from, for a model and a dataset: values, the windows they may move in, and the reasons.

The rule: pure arithmetic; every figure in a note is computed from the values returned, never written beside them.

Sources: learning rate and batch from the Tinker cookbook (thinking-machines-lab/tinker-cookbook: its formula, counted
in conversations a step, and the square-root rule; on the coarse grid of its later sweep, tulu3 at 128 conversations,
the best rate of each dense Llama and Qwen lies within a factor of 3 of the formula). Epochs from Muennighoff et al.
2023 (arXiv 2305.16264: repetition beyond four passes decays).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from engine.data.lengths import RowLengths

FINETUNE, TRAIN = "finetune", "train"
TYPES = (FINETUNE, TRAIN)

BASE_LR, LORA_FACTOR, REFERENCE_HIDDEN, REFERENCE_ROWS = 5e-5, 10, 2000, 128
EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
OTHER_EXPONENT = 0.5
# The square-root rule was measured around the reference. Below 16 rows a step it asks for rates far under those that
# are in use (2e-4 for LoRA at 8 to 16 rows), above 128 for rates that nobody has tried.
LEAST_ROWS = 16
NEW_BLOCKS_LR = (1e-4, 2e-4)
WINDOW_BELOW, WINDOW_ABOVE = 3, 2
WARN_ABOVE, REFUSE_ABOVE = 3, 6

LEAST_STEPS = 100
MOST_PASSES = 4
# Passes over the data that a batch may be sized for, to reach LEAST_STEPS; further passes come from `epochs`.
PASSES_FOR_BATCH = 2
STEP_TOKENS = 32_768  # a larger step takes tens of seconds on one card
FORWARD_TOKENS = 4_096  # enough to keep a card busy; more costs memory and brings little
ROUND_TO = 128
LONGEST = 4_096
UNKNOWN_LENGTH = {FINETUNE: 1024, TRAIN: 256}
SWEPT = (1e9, 7e10)  # parameters of the models that the rate was measured on
MOST_STEPS = 10_000_000  # as many as a request may ask for
RANKS, RANK = (8, 128), 32
ALPHAS, ALPHA = (16, 64), 32

WARNING = "Warning: "  # how a note begins that tells of a risk
DISCLAIMER = (
    "A starting point from published sweeps and from the size of the model and the data, not from a trial on them. "
    "Watch the held-out loss."
)


@dataclass(frozen=True)
class ModelSize:
    """What of a model matters here: parameters, hidden size, family, longest sequence where it is known."""

    params: int
    hidden: int
    family: str = ""
    positions: int | None = None
    estimated: bool = False  # the hidden size, from the parameters alone

    @classmethod
    def of_params(cls, params: int) -> ModelSize:
        """Estimate the hidden size: 4096 at 8 B, growing with the power 0.4; within 40 % from 5 M to 70 B."""
        return cls(params, max(round(4096 * (params / 8e9) ** 0.4 / 64), 1) * 64, estimated=True)

    @property
    def exponent(self) -> float:
        """How the rate falls with the hidden size in this family."""
        return next((power for name, power in EXPONENTS.items() if self.family.startswith(name)), OTHER_EXPONENT)


@dataclass(frozen=True)
class DataSize:
    """What of a dataset matters here: its tokens and how they are known; rows and their lengths where those are."""

    tokens: int
    rows: int | None = None
    lengths: RowLengths | None = None
    origin: str = "as given"

    def rows_in(self, tokens: int) -> float:
        """Return how many rows `tokens` tokens hold; 0 where the rows are not known."""
        return tokens * self.rows / self.tokens if self.rows else 0.0


@dataclass(frozen=True)
class Value:
    """A recommended value, the window in which it may move, and why in a few words."""

    value: float | int | str
    low: float | int | None
    high: float | int | None
    why: str

    def holds(self, value: float) -> bool:
        """Say whether `value` lies inside the window."""
        return self.low is None or self.high is None or self.low <= value <= self.high


@dataclass(frozen=True)
class Recommendation:
    """Values by the name of their setting, and notes in plain sentences."""

    type: str
    model: ModelSize
    data: DataSize
    values: dict[str, Value]
    notes: tuple[str, ...]

    def number(self, name: str) -> int:
        """Return a whole number among the values; 1 where it is not part of this type."""
        return int(self.values[name].value) if name in self.values else 1

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole job."""
        return math.prod(self.number(name) for name in ("steps", "turns", "cycles", "steps_per_cycle"))

    @property
    def step_tokens(self) -> int:
        """Tokens that one optimiser step sees."""
        return math.prod(self.number(name) for name in ("batch_size", "grad_accum", "seq_len"))

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.steps * self.step_tokens / self.data.tokens

    @property
    def hyperparams(self) -> dict[str, Any]:
        """The values as a request takes them."""
        return {name: one.value for name, one in self.values.items()}


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def _power_of_two(limit: float) -> int:
    """Return the largest power of two not above `limit`, at least 1."""
    return 1 << max(int(math.log2(limit)), 0) if limit >= 1 else 1


def rows_per_step(data: DataSize, sequences: int, seq_len: int) -> int:
    """Return how many rows a step of packed sequences holds; a sequence holds one where rows are not known."""
    return max(round(data.rows_in(sequences * seq_len)), sequences)


def counted_rows(rows: int) -> int:
    """Return the rows a step as the square-root rule counts them."""
    return min(max(rows, LEAST_ROWS), REFERENCE_ROWS)


def learning_rate(model: ModelSize, rows: int, *, type: str = FINETUNE, full: bool = False) -> float:
    """Return the peak rate for `rows` rows an optimiser step, to two digits.

    5e-5 · (10 for LoRA) · (2000 / hidden)^P · √(rows / 128), rows within 16 … 128; for new blocks 1e-4 … 2e-4.
    """
    batch = math.sqrt(counted_rows(rows) / REFERENCE_ROWS)
    if type == TRAIN:
        return _two_digits(max(NEW_BLOCKS_LR[1] * batch, NEW_BLOCKS_LR[0]))
    size = (REFERENCE_HIDDEN / model.hidden) ** model.exponent
    return _two_digits(BASE_LR * (1 if full else LORA_FACTOR) * size * batch)


def _seq_len(model: ModelSize, data: DataSize, type: str) -> Value:
    lengths = data.lengths
    most = min(LONGEST, model.positions or LONGEST)
    if lengths:
        wanted = _rounded_up(lengths.percentile(0.99))
        low, high = _rounded_up(lengths.percentile(0.95)), _rounded_up(lengths.sample[-1])
        why = f"holds {lengths.within(min(wanted, most)):.0%} of the rows whole"
    else:
        # Short enough for LEAST_STEPS where the data is small.
        wanted = int(PASSES_FOR_BATCH * data.tokens / LEAST_STEPS) // ROUND_TO * ROUND_TO
        wanted = min(max(wanted, ROUND_TO), UNKNOWN_LENGTH[type])
        low, high = min(ROUND_TO, wanted), wanted
        why = "row lengths are not known"
    value = min(wanted, most)
    # Rows are packed, so a longer sequence holds more of them: it costs memory and harms nothing.
    high = min(max(high, 4 * value), model.positions or LONGEST)
    return Value(value, min(low, value), max(high, value), why)


def _rounded_up(tokens: int) -> int:
    return max(math.ceil(tokens / ROUND_TO), 1) * ROUND_TO


def _sequences(data: DataSize, seq_len: int) -> int:
    """Return the sequences of an optimiser step: at most 128 rows and STEP_TOKENS, at least LEAST_STEPS steps."""
    limits = [PASSES_FOR_BATCH * data.tokens / LEAST_STEPS / seq_len, STEP_TOKENS / seq_len, REFERENCE_ROWS]
    if data.rows:
        limits.append(REFERENCE_ROWS / max(data.rows_in(seq_len), 1e-9))
    return _power_of_two(min(limits))


def epochs_cap(type: str, rows: int | None) -> int:
    """Return how many passes over the data are sensible at most."""
    if type == TRAIN:
        return MOST_PASSES
    if rows is None or rows >= 1000:
        return 3
    return 5 if rows >= 200 else 10


def _window(value: int, low: float, high: float) -> tuple[int, int]:
    """Return whole limits around `value`."""
    return min(max(int(low), 1), value), max(int(high), value)


def _schedule(type: str, data: DataSize, batch_tokens: int) -> dict[str, Value]:
    """Return the values that make up the number of steps."""
    cap = epochs_cap(type, data.rows)
    passes = min(max(math.ceil(LEAST_STEPS * batch_tokens / data.tokens), 1), cap)
    total = min(max(round(passes * data.tokens / batch_tokens), 1), MOST_STEPS)
    once, most = data.tokens / batch_tokens, min(cap * data.tokens / batch_tokens, MOST_STEPS)
    if type == FINETUNE:
        return {"steps": Value(total, *_window(total, once, most), f"one to {cap} passes over the data")}
    turns = 2 if total >= 4 else 1
    cycles = min(max(total // (10 * turns), 1), 6)
    each = max(round(total / (turns * cycles)), 1)
    room = most / (turns * cycles * each)
    return {
        "turns": Value(turns, *_window(turns, 1, min(turns * room, 4)), "two complete passes over the schedule"),
        "cycles": Value(cycles, *_window(cycles, cycles / 2, min(cycles * room, 12)), "each ends with a checkpoint"),
        "steps_per_cycle": Value(each, *_window(each, each / 2, each * room), f"at most {cap} passes over the data"),
    }


def recommend(
    model: ModelSize, data: DataSize, *, type: str = FINETUNE, full: bool = False, micro_batch: int | None = None
) -> Recommendation:
    """Return values for a job of `type`; `full` trains every weight, `micro_batch` limits the sequences of a pass."""
    length = _seq_len(model, data, type)
    seq_len = int(length.value)
    sequences = _sequences(data, seq_len)
    rows = rows_per_step(data, sequences, seq_len)
    rate = learning_rate(model, rows, type=type, full=full)
    values = _schedule(type, data, sequences * seq_len)
    why = f"for hidden size {model.hidden} and about {_many(rows, 'row')} a step"
    values["lr"] = Value(rate, _two_digits(rate / WINDOW_BELOW), _two_digits(min(rate * WINDOW_ABOVE, 1.0)), why)
    values["seq_len"] = length
    micro = min(sequences, _power_of_two(micro_batch or FORWARD_TOKENS / seq_len))
    values["batch_size"] = Value(micro, 1, max(sequences, micro), f"{micro * seq_len:,} tokens a pass")
    accum = sequences // micro
    values["grad_accum"] = Value(accum, 1, 2 * sequences, f"{sequences * seq_len:,} tokens a step")
    if type == FINETUNE:
        if not full:
            values["lora_rank"] = Value(RANK, *RANKS, "the rate does not depend on it")
            values["lora_alpha"] = Value(ALPHA, *ALPHAS, "the rate is measured at this scale")
        values["training_type"] = Value("full" if full else "lora", None, None, "every weight" if full else "adapters")
    bare = Recommendation(type, model, data, values, ())
    return replace(bare, notes=tuple(_notes(bare, rows)))


# The notes --------------------------------------------------------------------------------------------------------


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _times(number: float) -> str:
    return "once" if f"{number:.3g}" == "1" else f"{number:.3g} times"


def _notes(made: Recommendation, rows: int) -> Iterator[str]:
    yield _lr_note(made, rows)
    yield _batch_note(made, rows)
    yield _steps_note(made)
    yield _length_note(made)
    if made.model.estimated:
        yield (
            f"The hidden size {made.model.hidden} is estimated from {made.model.params:,} parameters; "
            "name the model for a better rate."
        )
    yield from _warnings(made)


def _lr_note(made: Recommendation, rows: int) -> str:
    lr, model, counted = made.values["lr"], made.model, counted_rows(rows)
    if made.type == TRAIN:
        least, most = NEW_BLOCKS_LR
        return (
            f"lr {lr.value:.1e}: {most:.0e} × √({counted} / {REFERENCE_ROWS}), not below {least:.0e}. New blocks "
            "beside frozen ones take such rates (LLaMA Pro, arXiv 2401.02415); "
            f"stay within {lr.low:.1e} and {lr.high:.1e}."
        )
    full = made.values["training_type"].value == "full"
    adapters = "" if full else f" × {LORA_FACTOR} for LoRA"
    clamped = "" if counted == rows else f" ({_many(rows, 'row')} a step count as {counted})"
    family = model.family or "unknown"
    return (
        f"lr {lr.value:.1e}: {BASE_LR:.0e}{adapters} × ({REFERENCE_HIDDEN} / {model.hidden})^{model.exponent} × "
        f"√({counted} / {REFERENCE_ROWS}){clamped}, the Tinker cookbook's rule for the family {family}. In its sweep "
        f"the loss moved by at most 3 % between a third and twice the rate ({lr.low:.1e} to {lr.high:.1e}) and "
        f"{REFUSE_ABOVE} times the rate diverged."
    )


def _batch_note(made: Recommendation, rows: int) -> str:
    accumulated = f" × grad_accum {made.number('grad_accum')}"
    alone = made.number("batch_size") * made.number("grad_accum") == 1
    steps, most = f"{LEAST_STEPS} steps in {PASSES_FOR_BATCH} passes", f"{REFERENCE_ROWS} rows"
    if alone:
        why = f"two sequences would leave fewer than {steps}, or take more than {most} or {STEP_TOKENS:,} tokens"
    else:
        why = f"the largest power of two that leaves {steps} and takes at most {most} and {STEP_TOKENS:,} tokens"
    return (
        f"A step sees batch_size {made.number('batch_size')}{accumulated} × seq_len {made.number('seq_len')} = "
        f"{made.step_tokens:,} tokens, about {_many(rows, 'row')}: {why}."
    )


def _steps_note(made: Recommendation) -> str:
    factors = ("turns", "cycles", "steps_per_cycle")
    product = " × ".join(f"{made.number(name):,} {name}" for name in factors if name in made.values)
    product = f"{product} = " if product else ""
    return (
        f"{product}{_many(made.steps, 'step')} of {made.step_tokens:,} tokens go {_times(made.epochs)} over the data: "
        f"{_many(made.data.tokens, 'token')}, {made.data.origin}."
    )


def _length_note(made: Recommendation) -> str:
    seq_len, lengths = made.number("seq_len"), made.data.lengths
    if lengths is None:
        return f"seq_len {seq_len}: row lengths are not known; name a dataset to have them measured."
    counted = "counted with the model's tokenizer" if lengths.tokenizer else "estimated from the characters"
    return (
        f"seq_len {seq_len}: of {_many(len(lengths.sample), 'row')} sampled, 95 % have at most "
        f"{lengths.percentile(0.95):,} tokens, 99 % at most {lengths.percentile(0.99):,}, the longest has "
        f"{lengths.sample[-1]:,} ({counted})."
    )


def _warnings(made: Recommendation) -> Iterator[str]:
    model, data, seq_len = made.model, made.data, made.number("seq_len")
    if model.positions and seq_len == model.positions:
        yield f"{WARNING}The model reads at most {model.positions:,} tokens at once; seq_len cannot be longer."
    longer = 1 - data.lengths.within(seq_len) if data.lengths else 0.0
    if longer > 0.01:
        yield f"{WARNING}About {longer:.0%} of the rows are longer than {seq_len:,} tokens and lose their end."
    if data.rows is not None and data.rows < 200:
        few = f"{_many(data.rows, 'row')} {'is' if data.rows == 1 else 'are'} few"
        yield f"{WARNING}{few}; the model may learn them by heart: watch the held-out loss."
    if made.epochs > MOST_PASSES:
        yield (
            f"{WARNING}The data is seen {_times(made.epochs)}; beyond {MOST_PASSES}, repetition teaches ever less "
            "(arXiv 2305.16264)."
        )
    if data.tokens < made.step_tokens:
        yield f"{WARNING}The data holds {data.tokens:,} tokens, less than one step of {made.step_tokens:,}."
    if made.type == FINETUNE and not SWEPT[0] <= model.params <= SWEPT[1]:
        yield (
            f"{WARNING}The rate was measured on models of {SWEPT[0] / 1e9:.0f} to {SWEPT[1] / 1e9:.0f} billion "
            f"parameters; for {model.params:,} it is extrapolated."
        )
