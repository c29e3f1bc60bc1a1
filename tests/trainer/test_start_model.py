"""A job that starts from a checkpoint starts where that checkpoint stood, whatever its workers die of on the way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import manifest, pins
from engine.errors import EngineError, NoSpace
from engine.journal import JournalWriter
from engine.order import Order, Start
from engine.trainer import finetune, loop, start_model
from engine.trainer.reporter import Reporter
from engine.trainer.run import StopFlag
from tests import tiny
from tests.crash import faults
from tests.trainer.conftest import Bench

WAYS: dict[str, dict[str, Any]] = {"lora": {}, "full": {"training_type": "full", "lr": 2e-3}}
STEP = 4


def train(bench: Bench, **settings: Any) -> Start:
    """Carry out the steps of a job, and return its checkpoint of step 4 as one to start from."""
    order = bench.order(steps=6, eval_steps=2, save_steps=2, **{"lr": 2e-2, **settings})
    run = bench.make_run(order)
    loop.train(run, loop.resume(run))
    return start_of(order)


def start_of(order: Order) -> Start:
    directory = Path(order.checkpoint_roots[0]) / f"step-{STEP:08d}"
    return Start("c-id", "first", "first-run", STEP, str(directory), order.model_path, dict(order.hyperparams))


def from_start(bench: Bench, start: Start, **settings: Any) -> Order:
    """Return the next attempt's order of a job that starts from a checkpoint."""
    return dataclasses.replace(bench.order(**settings), start=start, model_path=str(bench.folder / "start-model"))


def make(bench: Bench, order: Order) -> None:
    start_model.make(order, Reporter(JournalWriter(bench.journal_path(), order.fence)))


def first_loss(bench: Bench, order: Order) -> float:
    """Return the held-out loss before the first step of an order's run."""
    run = bench.make_run(order)
    state = loop.resume(run)
    loop.begin(run, state)
    loss: float = loop.evaluate_now(run, state, "evaluating")["loss"]
    return loss


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, tuple[Bench, Start]]:
    """A job of each way of training, with its checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("trained")
    rows = tiny.make_rows(folder / "sums.jsonl", 24)
    benches = {way: Bench(folder / way, tiny_model, rows) for way in WAYS}
    return {way: (bench, train(bench, **WAYS[way])) for way, bench in benches.items()}


@pytest.mark.parametrize("way", WAYS)
def test_a_job_from_a_checkpoint_begins_at_the_loss_that_the_checkpoint_had(
    trained: dict[str, tuple[Bench, Start]], make_bench: Callable[[str], Bench], way: str
) -> None:
    _, start = trained[way]
    bench = make_bench("second")
    order = from_start(bench, start)
    pins.pin(Path(start.directory), for_job="job")
    make(bench, order)
    recorded = manifest.load(Path(start.directory)).facts["eval_loss"]
    untrained = first_loss(bench, bench.order())
    assert first_loss(bench, order) == pytest.approx(recorded, abs=2e-3)
    # What was learned by then is many times what the rounding may cost.
    assert untrained - recorded > 0.05
    folder = Path(order.model_path)
    assert manifest.verify(folder).facts["checkpoint_id"] == "c-id"
    assert "model.safetensors" in manifest.load(folder).files
    assert not list(folder.glob("adapter"))
    assert not pins.is_pinned(Path(start.directory)), "the checkpoint is let go"
    assert [path.name for path in folder.parent.glob(".start-model*")] == []
    assert any(record.kind == "state" and "step 4" in record.data["activity"] for record in bench.records(1))


def test_a_resume_takes_the_model_that_was_made_and_one_that_is_damaged_is_made_anew(
    trained: dict[str, tuple[Bench, Start]], bench: Bench
) -> None:
    _, start = trained["lora"]
    order = from_start(bench, start)
    make(bench, order)
    weights = Path(order.model_path) / "model.safetensors"
    made = weights.stat().st_mtime_ns
    # The checkpoint is gone since: nothing but the model is needed.
    make(bench, from_start(bench, Start("c-id")))
    assert weights.stat().st_mtime_ns == made
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(EngineError, match=r"is gone\. Start from another"):
        make(bench, from_start(bench, Start("c-id")))
    make(bench, from_start(bench, start))
    assert weights.read_bytes() == whole
    assert any("damaged and made anew" in str(record.data.get("text")) for record in bench.records())


@pytest.fixture(scope="module")
def undisturbed(
    trained: dict[str, tuple[Bench, Start]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, list[str]]:
    """The weights of the model that is made of the checkpoint, and the calls that change files on the way."""
    first, start = trained["lora"]
    bench = Bench(tmp_path_factory.mktemp("undisturbed"), first.model_path, first.rows)
    with faults.at(0, faults.die) as count:
        make(bench, from_start(bench, start))
    weights = bench.folder / "start-model" / "model.safetensors"
    return weights.read_bytes(), [getattr(call, "__name__", "") for call in count.seen]


@pytest.mark.parametrize(
    ("where", "action"),
    [(("save_pretrained", 1), faults.die_within), (("rename", -1), faults.die_after)],
    ids=["model", "after-rename"],
)
def test_a_kill_while_the_model_is_made_leaves_it_whole_or_not_there_and_the_next_worker_goes_on(
    trained: dict[str, tuple[Bench, Start]],
    undisturbed: tuple[bytes, list[str]],
    bench: Bench,
    where: tuple[str, int],
    action: faults.Action,
) -> None:
    _, start = trained["lora"]
    (wanted, calls), (name, number) = undisturbed, where
    checkpoint, final = Path(start.directory), bench.folder / "start-model"
    pins.pin(checkpoint, for_job="job")
    order = from_start(bench, start)
    with faults.at([i for i, call in enumerate(calls, start=1) if call == name][number], action):
        assert faults.forked(lambda: make(bench, order)) == -9
    if final.exists():
        manifest.verify(final)
    assert pins.is_pinned(checkpoint), "kept for as long as it may be needed"

    make(bench, from_start(bench, start))
    assert final.joinpath("model.safetensors").read_bytes() == wanted
    assert not pins.is_pinned(checkpoint)
    assert list(bench.folder.glob(".start-model*")) == []


def test_a_damaged_checkpoint_is_named_and_nothing_is_made_of_it(
    trained: dict[str, tuple[Bench, Start]], bench: Bench, tmp_path: Path
) -> None:
    import shutil

    _, start = trained["lora"]
    copy = tmp_path / "step-00000004"
    shutil.copytree(start.directory, copy)
    copy.joinpath("weights.safetensors").write_bytes(b"x")
    with pytest.raises(EngineError, match=r"step 4 of the job first-run is damaged .* Start from another one"):
        make(bench, from_start(bench, dataclasses.replace(start, directory=str(copy))))
    assert not (bench.folder / "start-model").exists()


def test_a_model_to_start_from_that_finds_no_room_is_not_begun(
    trained: dict[str, tuple[Bench, Start]], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(bench.rows.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoSpace, match="the model to start from"):
        make(bench, from_start(bench, trained["lora"][1]))
    assert list(bench.folder.glob("*start-model*")) == []


def test_an_order_is_read_as_it_was_written_and_one_of_before_has_no_checkpoint(
    trained: dict[str, tuple[Bench, Start]], bench: Bench
) -> None:
    order = from_start(bench, trained["lora"][1])
    order.write(bench.folder)
    assert Order.read(bench.folder) == order
    fields = json.loads((bench.folder / "order.json").read_text())
    del fields["start"]
    (bench.folder / "order.json").write_text(json.dumps(fields))
    assert Order.read(bench.folder).start is None


def test_the_finished_model_says_from_which_checkpoint_it_came(
    trained: dict[str, tuple[Bench, Start]], bench: Bench
) -> None:
    order = from_start(bench, trained["full"][1], steps=1)
    make(bench, order)
    finetune.run_job(order, Reporter(JournalWriter(bench.journal_path(), order.fence)), StopFlag())
    folder = bench.folder / "models" / "out-id"
    assert json.loads((folder / "training.json").read_text())["start"] == {
        "checkpoint_id": "c-id",
        "job_id": "first",
        "job": "first-run",
        "step": 4,
    }
    assert "checkpoint `c-id`, step 4 of the run first-run" in (folder / "README.md").read_text()
