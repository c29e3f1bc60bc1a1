"""Checkpoints: everything comes back bit for bit, damage is never loaded, and the right ones are kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import manifest
from engine.manifest import Damaged
from engine.specs import FinetuneHyperparams
from engine.trainer import checkpoint, lora, models
from engine.trainer import optimizer as optimizers
from engine.trainer.checkpoint import LoopState
from engine.trainer.guard import Guard
from engine.trainer.ladder import Rung

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


def test_without_a_good_checkpoint_there_is_none_to_resume_from(three: Path) -> None:
    for folder in three.iterdir():
        (folder / "state.json").unlink()
    told: list[Damaged] = []
    assert checkpoint.newest_good([three], lambda _, damage: told.append(damage)) is None
    assert [damage.file for damage in told] == ["state.json"] * 3


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


FULL = """
import sys, torch
from pathlib import Path
from engine.errors import NoSpace
from engine.trainer import checkpoint
model = torch.nn.Linear(4, 4)
try:
    checkpoint.save(Path(sys.argv[1]), checkpoint.LoopState(step=1), {}, model, torch.optim.AdamW(model.parameters()))
except (OSError, NoSpace) as error:
    print("told")
"""


def test_a_disk_that_fills_up_while_saving_is_told_as_that(tmp_path: Path) -> None:
    # Room enough for the look ahead of the save, too little for the pages of its files.
    mount = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=8k none "$1" && shift && exec "$@"', "sh"]
    if subprocess.run([*mount, str(tmp_path), "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk of his own")
    ran = [*mount, str(tmp_path), sys.executable, "-c", FULL, str(tmp_path / "root")]
    done = subprocess.run(ran, capture_output=True, text=True, check=False)
    assert done.stdout == "told\n", done.stderr
