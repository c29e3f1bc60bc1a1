"""In which type a frozen model is held, and multiplied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.trainer import device as devices
from engine.trainer import models

CPU = torch.device("cpu")
FINE = 1 + 2**-10  # a step of fp16 above one; bf16 has none between 1 and 1 + 2**-7


@pytest.mark.parametrize(
    ("stored", "device", "held"),
    [
        ("fp16", "cuda", torch.float16),
        ("fp16", "cuda:1", torch.float16),
        ("fp16", "cpu", None),
        ("fp16", "mps", None),
        ("bf16", "cuda", None),
        ("fp32", "cuda:0", None),
        ("4-bit", "cuda", None),
    ],
)
def test_fp16_stays_fp16_on_a_card_and_all_else_is_as_the_device_multiplies(
    stored: str, device: str, held: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: device.type == "cuda")  # a card of today
    assert devices.frozen_dtype(stored, device) == (held or devices.compute_dtype(torch.device(device)))
    assert devices.compute_dtype(torch.device("cuda")) == torch.bfloat16


@pytest.fixture
def stored(tiny_model: Path, tmp_path: Path) -> Any:
    """Write the tiny model in fp16, with a norm of this gain, and pretend that the CPU is a card that likes bf16."""

    def write(gain: float) -> Path:
        model = models.load_model(tiny_model, torch.float32)
        with torch.no_grad():
            model.model.norm.weight.fill_(gain)
        models.save(model, models.load_tokenizer(tiny_model), tmp_path / "stored", torch.float16)
        return tmp_path / "stored"

    return write


def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this CPU decide as a card does."""
    known = devices.frozen_dtype
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: True)
    monkeypatch.setattr(devices, "frozen_dtype", lambda stored, device: known(stored, "cuda"))


def test_a_frozen_model_on_a_card_is_what_was_written_to_the_last_digit(
    stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(FINE)
    as_on_a_card(monkeypatch)
    model = models.load_frozen(folder, CPU)
    assert model.dtype == torch.float16
    assert model.model.norm.weight.unique().tolist() == [FINE]
    assert devices.loss_scale(model, CPU) > 1


def test_a_model_whose_activations_go_beyond_fp16_is_held_as_the_card_multiplies(
    stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(60_000.0)
    as_on_a_card(monkeypatch)
    assert models.load_frozen(folder, CPU).dtype == torch.bfloat16


def test_a_frozen_model_on_the_cpu_is_as_it_multiplies(stored: Any) -> None:
    assert models.load_frozen(stored(1.0), CPU).dtype == devices.compute_dtype(CPU)


def test_what_was_grown_beside_frozen_weights_is_multiplied_in_their_type() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, dtype=torch.float16), torch.nn.Linear(2, 2))
    assert not devices.autocast(model, CPU)._enabled
    setattr(model, devices.MIXED, True)
    context = devices.autocast(model, CPU)
    assert (context._enabled, context.fast_dtype) == (True, torch.float16)
