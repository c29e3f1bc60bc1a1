"""Checkpoints: everything comes back bit for bit, damage is never loaded, and the right ones are kept."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import manifest, pins
from engine.errors import NoSpace
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.manifest import Damaged
from engine.trainer import checkpoint, loop, lora, models
from engine.trainer import optimizer as optimizers
from engine.trainer.checkpoint import LoopState
from engine.trainer.guard import Guard
from engine.trainer.ladder import Rung
from tests.crash import disks, faults
from tests.trainer.conftest import Bench

DEVICE = torch.device("cpu")


def make(
    tiny_model: Path, training_type: str, optimizer: str = "adamw"
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    settings = FinetuneHyperparams.model_validate(
        {"lora_rank": 4, "training_type": training_type, "optimizer": optimizer, "weight_decay": 0.1}
    )
    model = models.load_model(tiny_model, torch.float32)
    if training_type == "lora":
        model = lora.add_adapters(model, settings)
    return model, optimizers.make(model, settings, DEVICE)


def train_a_little(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        model(input_ids=torch.randint(0, 200, (2, 16))).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(root: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    return checkpoint.save(root, LoopState(step=step), {"step": step}, model, optimizer)


@pytest.fixture
def three(tmp_path: Path, tiny_model: Path) -> Path:
    """A root with the checkpoints of steps 1, 2 and 3."""
    model, optimizer = make(tiny_model, "lora")
    for step in (1, 2, 3):
        train_a_little(model, optimizer, 1)
        save(tmp_path / "root", step, model, optimizer)
    return tmp_path / "root"


@pytest.mark.parametrize("training_type", ["lora", "full"])
def test_weights_moments_random_states_and_loop_state_come_back_bit_for_bit(
    tmp_path: Path, tiny_model: Path, training_type: str
) -> None:
    model, optimizer = make(tiny_model, training_type)
    train_a_little(model, optimizer)
    state = LoopState(
        step=3,
        tokens=48,
        seconds=1.25,
        skipped=1,
        rung=Rung(2, "full"),
        lr_scale=0.5,
        guard=Guard([4.0, 3.9], [1.0, 2.0], 1),
        baseline_loss=4.5,
        train_loss=4.0,
        best_loss=3.9,
        best_step=2,
        lowest=3.8,
        stale=1,
        curve=[(0, 4.5), (2, 3.9)],
        samples={"sample_prompt": "ünïcode"},
    )
    directory = checkpoint.save(tmp_path / "root", state, {"step": 3}, model, optimizer)
    expected_random = torch.rand(5)

    torch.manual_seed(999)
    fresh, fresh_optimizer = make(tiny_model, training_type)
    with torch.no_grad():
        for parameter in fresh.parameters():
            if parameter.requires_grad:
                parameter.fill_(7.0)
    assert checkpoint.restore(directory, fresh, fresh_optimizer) == state
    assert torch.equal(torch.rand(5), expected_random)
    for (name, before), (other, after) in zip(model.named_parameters(), fresh.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(before, after), name
        moments, restored = optimizer.state.get(before, {}), fresh_optimizer.state.get(after, {})
        assert moments.keys() == restored.keys()
        assert not before.requires_grad or {"step", "exp_avg", "exp_avg_sq"} <= moments.keys()
        for key, value in moments.items():
            assert torch.equal(value, restored[key]), (name, key)
            assert value.dtype == restored[key].dtype


def test_8_bit_state_comes_back_bit_for_bit_and_goes_on_the_same(tmp_path: Path, tiny_model: Path) -> None:
    model, optimizer = make(tiny_model, "full", optimizer="adamw_8bit")
    train_a_little(model, optimizer)
    directory = save(tmp_path, 3, model, optimizer)
    before = optimizers.state_tensors(model, optimizer)
    # Large tensors have it, small ones and norms are kept in 32 bits.
    assert {tensor.dtype for key, tensor in before.items() if "state1" in key} == {torch.uint8, torch.float32}

    fresh, fresh_optimizer = make(tiny_model, "full", optimizer="adamw_8bit")
    train_a_little(fresh, fresh_optimizer, 1)  # a run that goes back has state of its own
    checkpoint.restore(directory, fresh, fresh_optimizer)
    after = optimizers.state_tensors(fresh, fresh_optimizer)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) and after[key].dtype == before[key].dtype for key in before)
    random = torch.get_rng_state()
    train_a_little(fresh, fresh_optimizer)
    torch.set_rng_state(random)
    train_a_little(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_checkpoint_before_the_first_update_takes_the_optimisers_state_away(tmp_path: Path, tiny_model: Path) -> None:
    model, optimizer = make(tiny_model, "lora")
    directory = save(tmp_path, 1, model, optimizer)  # its only step was skipped
    train_a_little(model, optimizer)
    checkpoint.restore(directory, model, optimizer)
    assert optimizers.state_tensors(model, optimizer) == {}


def test_a_checkpoint_of_other_weights_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    directory = save(tmp_path, 1, *make(tiny_model, "lora"))
    with pytest.raises(ValueError, match="holds other weights"):
        checkpoint.restore(directory, *make(tiny_model, "full"))


def test_a_published_checkpoint_is_verified_and_nothing_else_lies_beside_it(three: Path) -> None:
    assert [path.name for path in checkpoint.published([three])] == ["step-00000003", "step-00000002", "step-00000001"]
    assert sorted(path.name for path in three.iterdir()) == ["step-00000001", "step-00000002", "step-00000003"]
    assert manifest.verify(three / "step-00000003").facts == {"step": 3}
    files = [path for path in (three / "step-00000003").iterdir() if path.name != manifest.MANIFEST]
    assert checkpoint.size_of(three / "step-00000003") == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize(
    "file", ["weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete", "swap"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_used(three: Path, file: str, harm: str) -> None:
    path = three / "step-00000003" / file
    content = path.read_bytes()
    if harm == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif harm == "truncate":
        path.write_bytes(content[:-1])
    elif harm == "delete":
        path.unlink()
    else:
        path.write_bytes((three / "step-00000002" / file).read_bytes())
    if (file, harm) == ("random.safetensors", "swap") and path.read_bytes() == content:
        pytest.skip("nothing random happened between the two, so they are one")
    told: list[tuple[str, str]] = []
    good = checkpoint.newest_good([three], lambda folder, damage: told.append((folder.name, str(damage))))
    assert good == three / "step-00000002"
    ((folder, damage),) = told
    assert folder == "step-00000003.damaged"
    # A manifest that is another one fits none of the files here; the first of them is named.
    assert file == "manifest.json" or f"step-00000003/{file}" in damage
    assert checkpoint.newest_good([three], lambda *_: pytest.fail("set aside twice")) == good


FILES = ["weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
def test_a_bit_that_flips_anywhere_in_any_file_is_detected(three: Path, file: str) -> None:
    path = three / "step-00000003" / file
    good = path.read_bytes()
    rng = random.Random(file)
    for position in [0, 7, 8, len(good) - 1, *(rng.randrange(len(good)) for _ in range(40))]:
        flipped = bytearray(good)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(Damaged) as caught:
            manifest.verify(path.parent)
        assert file in (caught.value.file, "manifest.json")
    path.write_bytes(good)
    assert checkpoint.newest_good([three], lambda *_: pytest.fail("damaged")) == path.parent


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(FILES, 2)))
def test_two_files_of_a_checkpoint_that_are_swapped_are_detected(three: Path, one: str, other: str) -> None:
    newest = three / "step-00000003"
    (newest / one).rename(newest / "spare")
    (newest / other).rename(newest / one)
    (newest / "spare").rename(newest / other)
    assert checkpoint.newest_good([three], lambda *_: None) == three / "step-00000002"


def test_a_whole_checkpoint_under_the_name_of_another_is_detected(three: Path) -> None:
    (three / "step-00000003").rename(three / "spare")
    (three / "step-00000002").rename(three / "step-00000003")
    (three / "spare").rename(three / "step-00000002")
    told: list[str] = []
    assert checkpoint.newest_good([three], lambda _, damage: told.append(str(damage))) == three / "step-00000001"
    assert told == [
        "step-00000003/manifest.json: is that of step 2",
        "step-00000002/manifest.json: is that of step 3",
    ]


def test_a_checkpoint_that_cannot_be_read_is_set_aside_and_the_one_before_is_used(three: Path) -> None:
    # Nothing is closed to root: who is asked is nobody, below a folder that he may enter.
    open_folder = Path(tempfile.mkdtemp())
    root = Path(shutil.copytree(three, open_folder / "root"))
    (root / "step-00000003").chmod(0)
    (root / "step-00000002" / "weights.safetensors").chmod(0)
    for path in (open_folder, root, *root.rglob("*")):
        os.chown(path, *((65534, 65534) if os.getuid() == 0 else (-1, -1)))

    def ask() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        told: list[str] = []
        assert checkpoint.newest_good([root], lambda _, damage: told.append(str(damage))) == root / "step-00000001"
        assert "step-00000003/manifest.json: cannot be read" in told[0]
        assert told[1] == "step-00000002/weights.safetensors: cannot be read (Permission denied)"

    try:
        assert faults.forked(ask) == 0
    finally:
        shutil.rmtree(open_folder)


def test_without_a_good_checkpoint_there_is_none_to_resume_from(three: Path) -> None:
    for folder in three.iterdir():
        (folder / "state.json").unlink()
    told: list[Damaged] = []
    assert checkpoint.newest_good([three], lambda _, damage: told.append(damage)) is None
    assert [damage.file for damage in told] == ["state.json"] * 3


def test_of_damaged_checkpoints_that_of_the_highest_step_is_kept_and_those_its_user_pinned(three: Path) -> None:
    pins.pin(three / "step-00000001")
    pins.pin(three / "step-00000002", for_job="other")  # which starts from no damaged one
    for folder in three.iterdir():
        (folder / "state.json").unlink()
    checkpoint.newest_good([three], lambda *_: None)
    assert sorted(path.name for path in three.iterdir()) == ["step-00000001.damaged", "step-00000003.damaged"]


@pytest.fixture
def saved(bench: Bench) -> Path:
    """The root of an attempt that was cut off after saving steps 1, 2 and 3."""
    run = replace(bench.make_run(bench.order(steps=3, save_steps=1)), keep_checkpoints=3)
    loop.train(run, loop.resume(run))
    return run.roots[0]


def damage(root: Path, *steps: int) -> None:
    for step in steps:
        path = root / f"step-{step:08d}" / "optimizer.safetensors"
        os.truncate(path, path.stat().st_size - 1)


def test_two_damaged_in_a_row_are_named_in_the_journal_and_the_third_is_used(bench: Bench, saved: Path) -> None:
    damage(saved, 2, 3)
    assert loop.resume(bench.make_run(bench.order(steps=3, save_steps=1))).step == 1
    gone = [record.data for record in bench.records() if record.kind == "checkpoint_gone"]
    assert [(data["step"], data["state"]) for data in gone] == [(3, "quarantined"), (2, "quarantined")]
    for data in gone:
        assert f"step-0000000{data['step']}/optimizer.safetensors" in data["why"]


def test_when_all_are_damaged_the_run_starts_anew_and_says_so(bench: Bench, saved: Path) -> None:
    damage(saved, 1, 2, 3)
    assert loop.resume(bench.make_run(bench.order(steps=3, save_steps=1))) == LoopState()
    told = bench.records()
    assert [record.data["step"] for record in told if record.kind == "resume"] == [0]
    assert any("training starts anew" in record.data["text"] for record in told if record.kind == "log")


def test_a_checkpoint_that_its_attempt_could_not_tell_of_is_told_by_the_next(bench: Bench, saved: Path) -> None:
    whole = bench.journal_path().read_bytes().splitlines(keepends=True)
    last = max(i for i, line in enumerate(whole) if b'"kind":"checkpoint"' in line)
    bench.journal_path().write_bytes(b"".join(whole[:last]))
    for expected in ([str(saved / "step-00000003")], []):
        # Once told it is known: an attempt that resumes from the same one adds nothing.
        assert loop.resume(bench.make_run(bench.order(steps=3, save_steps=1))).step == 3
        told = [record.data for record in bench.records() if record.kind == "checkpoint"]
        assert [data["path"] for data in told] == expected
        assert all(data["step"] == 3 and data["bytes"] > 0 for data in told)


def test_what_an_attempt_that_died_left_half_done_is_removed_by_the_next(bench: Bench, saved: Path) -> None:
    for name in (".stage-00000004", ".removed-step-00000000-0"):
        (saved / name / "inner").mkdir(parents=True)
    loop.resume(bench.make_run(bench.order(steps=3, save_steps=1)))
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000001", "step-00000002", "step-00000003"]


def test_a_pinned_checkpoint_is_kept_until_its_pin_is_taken_away(three: Path) -> None:
    pins.pin(three / "step-00000001")
    assert checkpoint.prune([three], keep=2, best_step=0) == []
    assert checkpoint.newest_good([three], lambda *_: pytest.fail("damaged")) == three / "step-00000003"
    pins.unpin(three / "step-00000001")
    assert checkpoint.prune([three], keep=2, best_step=0) == [1]


def test_two_checkpoints_are_kept_whatever_is_asked(three: Path) -> None:
    assert checkpoint.prune([three], keep=0, best_step=0) == [1]


def test_a_checkpoint_that_is_pinned_while_it_is_being_removed_is_put_back_and_told(three: Path) -> None:
    first = three / "step-00000001"

    def pin_first(call: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        pins.pin(first)
        return call(*arguments, **options)

    told: list[object] = []
    with faults.at(1, pin_first) as count:
        checkpoint.prune([three], keep=2, best_step=0, on_gone=told.append, on_spared=told.append)
    assert count.calls > 1
    assert told == [1, first]
    manifest.verify(first)
    assert pins.is_pinned(first)
    with pytest.raises(FileNotFoundError):
        pins.pin(three / "step-00000009")


def test_the_newest_and_the_best_are_kept(three: Path, tiny_model: Path) -> None:
    model, optimizer = make(tiny_model, "lora")
    for step in (4, 5):
        save(three, step, model, optimizer)
    assert checkpoint.prune([three], keep=2, best_step=2) == [3, 1]
    assert [checkpoint.step_of(path) for path in checkpoint.published([three])] == [5, 4, 2]
    assert checkpoint.prune([three], keep=2, best_step=2) == []
    assert sorted(path.name for path in three.iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]


def test_checkpoints_of_earlier_attempts_count_like_ones_own(three: Path, tmp_path: Path, tiny_model: Path) -> None:
    own = tmp_path / "own"
    save(own, 5, *make(tiny_model, "lora"))
    roots = [own, three]
    assert checkpoint.newest_good(roots, lambda *_: None) == own / "step-00000005"
    assert checkpoint.prune(roots, keep=2, best_step=0) == [2, 1]
    assert checkpoint.published(roots) == [own / "step-00000005", three / "step-00000003"]


def test_a_step_that_still_has_a_copy_is_not_told_to_be_gone(three: Path, tmp_path: Path, tiny_model: Path) -> None:
    own = tmp_path / "own"
    model, optimizer = make(tiny_model, "lora")
    # Resumed at 3, stopped at once (which saves 3 again), resumed, then saved 4.
    for step in (3, 4):
        save(own, step, model, optimizer)
    gone = checkpoint.prune([own, three], keep=2, best_step=0)
    left = {checkpoint.step_of(path) for path in checkpoint.published([own, three])}
    assert 3 in left
    assert not left & set(gone)


def save_where_there_is_no_room(root: Path) -> None:
    model = torch.nn.Linear(4, 4)
    # Room enough for the look ahead of the save, too little for the pages of its files.
    with pytest.raises(NoSpace, match=r"saving the checkpoint of step 1 failed"):
        save(root, 1, model, torch.optim.AdamW(model.parameters()))
    assert list(root.iterdir()) == []


def test_a_disk_that_fills_up_while_saving_is_told_as_that(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disks.on_a_small_disk(disk, "8k", save_where_there_is_no_room, disk / "root")
