"""The training loop. It reads from top to bottom; every job that trains goes through it.

The rule: what a step does depends on the step's number, the seed and the restored state alone, so a run that was
killed and resumed gives the losses of one that was not, bit for bit on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from engine import atomic, journal, manifest, pins
from engine.jobs.hyperparams import LoopHyperparams
from engine.order import JOURNAL
from engine.trainer import checkpoint, evaluate, guard, ladder, models
from engine.trainer import device as devices
from engine.trainer.checkpoint import LoopState
from engine.trainer.ladder import Rung
from engine.trainer.run import Diverged, Run, Stopped
from engine.trainer.schedule import learning_rate
from engine.trainer.step import Step, climb_down, probe, train_step


def save(run: Run, state: LoopState, lr: float) -> None:
    """Publish a checkpoint of `state`, report it, and remove those that need not be kept."""
    run.reporter.state("checkpointing", f"saving step {state.step}")
    note_best(state)
    epoch = state.step * run.settings.batch_size * run.settings.grad_accum / len(run.corpus.training)
    facts = {
        "step": state.step,
        "epoch": round(epoch, 4),
        "loss": state.train_loss,
        "eval_loss": state.eval_loss,
        "lr": lr,
    }
    directory = checkpoint.save(run.roots[0], state, facts, run.model, run.optimizer)
    if not run.aside:
        # Before it is told of: a request that comes later than that is for another one.
        run.stop.save_requested = False
    report(run, directory)
    with atomic.telling("removing older checkpoints", run.roots[0]):
        checkpoint.prune(
            run.roots,
            keep=run.keep_checkpoints,
            best_step=state.best_step,
            on_gone=lambda step: run.reporter.checkpoint_gone(step, "removed"),
            on_spared=lambda spared: report(run, spared),
        )
    run.reporter.state("running", "training")


def note_best(state: LoopState) -> None:
    """Take note of a checkpoint of this step, if it is the best so far.

    The best of those that are saved, by the newest held-out loss at each: what is not saved cannot be kept.
    """
    if state.eval_loss is not None and (state.best_loss is None or state.eval_loss < state.best_loss):
        state.best_loss, state.best_step = state.eval_loss, state.step


def leave(run: Run, state: LoopState) -> NoReturn:
    """End a run that was asked to stop: raise Stopped, with its state saved.

    After a no-number the weights may be spoilt: the checkpoint before is the better one.
    """
    if state.step and not state.guard.no_numbers:
        save(run, state, _rate(run.settings, state, state.step))
    raise Stopped


def report(run: Run, directory: Path) -> None:
    """Tell of a published checkpoint, by what its manifest says."""
    run.reporter.checkpoint(directory, manifest.load(directory).facts, checkpoint.size_of(directory))


def evaluate_now(run: Run, state: LoopState, activity: str) -> dict[str, Any]:
    """Measure the held-out loss into `state`; return its telemetry point.

    Raises Stopped, with `state` as it was, where the run is asked to stop meanwhile; Diverged.
    """
    between = evaluate.watched(activity, run.reporter, run.stop)
    while True:
        try:
            loss = evaluate.mean_loss(run.objective, run.corpus.validation, state.rung.batch_size, between)
            break
        except Exception as error:
            if not ladder.is_out_of_memory(error):
                raise
            reason = ladder.reason(error)
        devices.free_memory(run.device)
        climb_down(run, state, state.step, reason)
    if not math.isfinite(loss):
        raise Diverged(f"the held-out loss is {loss} at step {state.step}: the model's weights are no use any more.")
    state.eval_loss = loss
    state.curve.append((state.step, loss))
    run.reporter.activity("training")
    point = {"step": state.step, "phase": "eval", "ts": time.time(), "loss": loss, "tokens": state.tokens}
    cycle = run.settings.cycle(state.step) if state.step else 0
    return point | ({"cycle": cycle} if cycle else {})


def improved(run: Run, state: LoopState) -> bool:
    """Take note of the newest held-out loss for early stopping; say whether it is the lowest so far."""
    if state.eval_loss is None:
        return False
    better = state.lowest is None or state.eval_loss < state.lowest - run.settings.early_stopping_min_delta
    state.lowest = state.eval_loss if better else state.lowest
    state.stale = 0 if better else state.stale + 1
    return better


def judge(run: Run, state: LoopState) -> tuple[list[dict[str, Any]], bool]:
    """Evaluate at this step; return its point, and whether early stopping takes it for the best.

    Where the run is asked to stop meanwhile there is no point, and the state owes the evaluation.
    """
    try:
        point = evaluate_now(run, state, f"evaluating at step {state.step}")
    except Stopped:
        state.owed = True
        return [], False
    state.guard.no_numbers = 0  # the weights gave a number: they are sound
    return [point], improved(run, state) and run.settings.early_stopping_patience > 0


def make_good(run: Run, state: LoopState) -> None:
    """Make the evaluation that the state owes, if it does, with all that follows from it; its checkpoint stands.

    Raises Stopped where the run is asked to stop meanwhile, and the checkpoint goes on owing it; Diverged.
    """
    if not state.owed:
        return
    run.reporter.points([evaluate_now(run, state, f"evaluating at step {state.step}")])
    state.owed = False
    improved(run, state)
    note_best(state)
    if run.settings.ends_cycle(state.step) and run.on_cycle:
        run.on_cycle(state)


def skip(run: Run, state: LoopState, step: int, done: Step) -> LoopState:
    """Record a step that was skipped; return the state to go on from: an earlier one after too many no-numbers.

    Raises Diverged where that was tried before, or there is nothing to go back to.
    """
    state.skipped += 1
    facts = {"step": step, "loss": _json_number(done.loss), "grad_norm": _json_number(done.norm), "why": done.verdict}
    run.reporter.event("spike", **facts)
    words = "is no number" if done.verdict == "nan" else "stands out"
    run.reporter.log(f"Step {step} skipped: loss {done.loss:.4g}, gradient norm {done.norm:.4g} {words}.", "warning")
    if done.verdict == "nan" and state.loss_scale > 1 and math.isfinite(done.loss):
        # Gradients in fp16 overflow though the loss does not; a smaller scale is all they need.
        state.loss_scale = max(1.0, state.loss_scale / 2)
        state.guard.no_numbers = 0
    if not state.guard.hopeless:
        return state
    trouble = f"the loss or its gradient was no number {guard.NO_NUMBERS_AT_MOST} times in a row, up to step {step}"
    remedy = f"Lower lr (now {run.settings.lr * state.lr_scale:g}) and retry; the checkpoints before are kept."
    if state.lr_scale < 1:
        raise Diverged(f"{trouble}, also at half the learning rate: training diverged. {remedy}")
    directory = _newest_good(run)
    if directory is None:
        raise Diverged(f"{trouble}, before there was a checkpoint to go back to. {remedy}")
    earlier = checkpoint.restore(directory, run.model, run.optimizer)
    earlier.lr_scale = state.lr_scale / 2
    # What was learned of the device on the way holds on.
    earlier.rung, earlier.loss_scale, earlier.seconds = state.rung, state.loss_scale, state.seconds
    run.reporter.resume(earlier.step)
    run.reporter.event("rollback", step=earlier.step, lr_scale=earlier.lr_scale)
    run.reporter.log(f"{trouble}: back to the checkpoint of step {earlier.step}, with half the learning rate.", "error")
    return earlier


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def begin(run: Run, state: LoopState) -> None:
    """Bring the model to where a fresh or restored state stands."""
    if state.rung.batch_size == 0:
        state.rung = Rung(run.settings.batch_size, run.settings.gradient_checkpointing)
        state.loss_scale = devices.loss_scale(run.model, run.device)
    models.set_checkpointing(run.model, state.rung.gradient_checkpointing)
    run.model.train()


def has_enough(run: Run, state: LoopState) -> bool:
    """Say whether early stopping ends the run here."""
    return 0 < run.settings.early_stopping_patience <= state.stale


def train(run: Run, state: LoopState) -> LoopState:
    """Train from `state.step` to the last step, with telemetry, evaluation and checkpoints on the way.

    Returns the state at the end, which early stopping may bring about. Raises Stopped after saving, when asked to
    stop; Diverged; OutOfMemory; NoSpace.
    """
    settings, begun = run.settings, time.monotonic()
    before, first, saved = state.seconds, state.step, 0.0
    begin(run, state)
    probe(run, state)
    make_good(run, state)
    while state.step < settings.total_steps and not has_enough(run, state):
        if run.stop.requested:
            leave(run, state)
        step = state.step + 1
        rate = _rate(settings, state, step)
        started = time.monotonic()
        done = train_step(run, state, step, rate)
        elapsed = time.monotonic() - started

        if done.verdict:
            earlier = skip(run, state, step, done)
            if earlier is not state:
                state, before, begun, first = earlier, earlier.seconds, time.monotonic(), earlier.step
                make_good(run, state)
                continue
        state.step = step
        state.train_loss = done.loss if math.isfinite(done.loss) else state.train_loss
        state.tokens += done.tokens
        state.seconds = before + time.monotonic() - begun
        point: dict[str, Any] = {
            "step": step,
            "phase": "train",
            "ts": time.time(),
            "loss": done.loss if math.isfinite(done.loss) else None,
            "lr": rate,
            "grad_norm": done.norm if math.isfinite(done.norm) else None,
            "throughput": done.tokens / elapsed,
            "vram_gb": devices.memory_gb(run.device),
            "tokens": state.tokens,
            "epoch": step * settings.batch_size * settings.grad_accum / len(run.corpus.training),
            "step_s": elapsed,
            **({"cycle": settings.cycle(step)} if settings.cycle(step) else {}),
            **done.parts,
            "save_s": saved,  # before this step: a point is written before its checkpoint, so that none is ever lost
        }
        last, best = step == settings.total_steps, False
        points = [point]
        cycle_ends = settings.ends_cycle(step)
        if last or ((step % settings.eval_interval == 0 or cycle_ends) and not state.guard.no_numbers):
            # Before the step's own point, so that who asks for "newer than this step" has both or neither.
            evaluated, best = judge(run, state)
            points = [*evaluated, point]
        # Saves and evaluations are part of what is left, so the estimate is over the wall clock.
        point["eta_s"] = (time.monotonic() - begun) / (step - first) * (settings.total_steps - step)
        run.reporter.points(points)
        if state.owed:
            leave(run, state)
        saving = time.monotonic()
        # A run of no-numbers may mean that the weights are spoilt: such a state is never the newest checkpoint.
        ends = last or cycle_ends or has_enough(run, state)
        if cycle_ends and run.on_cycle:
            run.on_cycle(state)
        asked = run.stop.save_requested and not run.aside
        if (step % settings.save_steps == 0 or best or ends or asked) and not state.guard.no_numbers:
            save(run, state, rate)
        saved = time.monotonic() - saving
    if has_enough(run, state) and state.step < settings.total_steps:
        run.reporter.event("early_stop", step=state.step, best_step=state.best_step)
        run.reporter.log(f"Stopped early: no better held-out loss in {state.stale} evaluations.")
    state.seconds = before + time.monotonic() - begun
    return state


def take_best(run: Run, state: LoopState) -> LoopState:
    """With early stopping, go back to the weights of the best checkpoint; return its state with this one's totals."""
    if not run.settings.early_stopping_patience or state.best_step in (0, state.step):
        return state
    directory = _newest_good(run, step=state.best_step)
    if directory is None:
        run.reporter.log("The best checkpoint is gone or damaged; the model is that of the last step.", "warning")
        return state
    best = checkpoint.restore(directory, run.model, run.optimizer)
    run.reporter.log(f"The model is that of step {best.step}, whose held-out loss is the lowest.")
    # That of the checkpoint is of before, where the evaluation of its step was left and made by a later attempt.
    best.eval_loss = state.best_loss
    # What was spent is spent; what is published is the best.
    best.seconds, best.tokens, best.curve, best.samples = state.seconds, state.tokens, state.curve, state.samples
    return best


def _rate(settings: LoopHyperparams, state: LoopState, step: int) -> float:
    return state.lr_scale * learning_rate(
        step,
        steps=settings.total_steps,
        peak=settings.lr,
        shape=settings.lr_scheduler,
        warmup=settings.warmup,
    )


def _set_aside(run: Run) -> Callable[[Path, Exception], None]:
    """Return what tells of a damaged checkpoint that was set aside."""

    def tell(directory: Path, damage: Exception) -> None:
        run.reporter.checkpoint_gone(checkpoint.step_of(Path(directory.stem)), "quarantined", why=str(damage))
        run.reporter.log(f"Checkpoint {damage}; set aside as {directory.name}, trying the one before.", "error")

    return tell


def _newest_good(run: Run, *, step: int | None = None) -> Path | None:
    """Return the newest good checkpoint (of one step); by what is told, it stands, and so does every pinned one."""
    directory = checkpoint.newest_good(run.roots, _set_aside(run), step=step)
    if directory is None:
        return None
    standing = _standing(run)
    pinned = [path for path in checkpoint.published(run.roots) if pins.is_pinned(path)]
    # A removal was told of before it began, and a pin that came in between took it back.
    untold = [path for path in reversed(pinned) if checkpoint.step_of(path) not in standing]
    for path in untold:
        with suppress(manifest.Damaged):
            report(run, path)
    # Its attempt died between publishing it and saying so; or another copy of the same step was set aside.
    if untold or standing.get(checkpoint.step_of(directory)) != str(directory):
        report(run, directory)
    return directory


def resume(run: Run) -> LoopState:
    """Restore the newest good checkpoint and say so; a fresh state where there is none."""
    checkpoint.clear(run.roots)
    directory = _newest_good(run)
    if directory is None:
        run.reporter.resume(0)
        if any(next(root.glob(f"step-*{checkpoint.QUARANTINE}"), None) for root in run.roots):
            run.reporter.log("No checkpoint is left that can be used: training starts anew.", "error")
        return LoopState()
    state = checkpoint.restore(directory, run.model, run.optimizer)
    run.reporter.resume(state.step)
    run.reporter.log(f"Resumed from the checkpoint of step {state.step}.")
    return state


def _standing(run: Run) -> dict[int, str]:
    """Return the checkpoints that stand by the last word told of each step, over all attempts: step and path."""
    standing: dict[int, str] = {}
    for root in reversed(run.roots):
        offset = 0
        while (batch := journal.read(root.parent / JOURNAL, offset)).offset > offset:
            offset = batch.offset
            for line in batch.records:
                if line.kind == "checkpoint":
                    standing[line.data["step"]] = line.data["path"]
                elif line.kind == "checkpoint_gone":
                    standing.pop(line.data["step"], None)
    return standing
