"""Devices are counted as torch counts them, and a card that does not tell its memory is a card all the same."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from engine import resources
from engine.errors import EngineError, NoSpace
from engine.resources import Device, Holder
from tests.engine.nvml import Card, Driver


@pytest.mark.parametrize(
    ("visible", "labels"),
    [
        (None, ["a", "b", "c"]),
        ("1", ["b"]),
        ("2,0", ["c", "a"]),
        ("GPU-c", ["c"]),
        ("0,9,1", ["a"]),
    ],
)
def test_cards_are_those_that_torch_would_see_in_its_order(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, labels: list[str]
) -> None:
    monkeypatch.setattr(resources, "_nvml", lambda: Driver("a", "b", "c"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = resources.devices()
    assert [device.label for device in found] == labels
    assert [device.name for device in found] == [f"cuda:{index}" for index in range(len(labels))]


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_cards_leave_the_cpu(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setattr(resources, "_nvml", lambda: Driver("a"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [device.name for device in resources.devices()] in (["cpu"], ["mps"])


def test_a_card_that_does_not_tell_its_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_nvml", lambda: Driver("a", tells_memory=False))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [(device.name, device.memory_total) for device in resources.devices()] == [("cuda:0", 0)]


def test_a_driver_that_does_not_answer_is_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_nvml", lambda: Driver("a", lost=True))
    with pytest.raises(EngineError, match=r"GPU is lost.*nvidia-smi"):
        resources.devices()


def test_room_is_asked_for_with_a_fifth_to_spare(tmp_path: Path) -> None:
    resources.need_space(tmp_path, 1, "a byte")
    free = resources.free_bytes(tmp_path)
    with pytest.raises(NoSpace, match=r"No disk space for it.*FUSION_HOME"):
        resources.need_space(tmp_path, free, "it")


def test_the_processes_on_a_card_are_named_with_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = 2**22 + 1  # above any pid
    card = Card("a", compute={os.getpid(): 100, gone: None}, graphics={os.getpid(): 100, 1: 300})
    monkeypatch.setattr(resources, "_nvml", lambda: Driver("other", card))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = resources.holders(resources.devices()[1])
    assert [(holder.pid, holder.bytes) for holder in found] == [(1, 300), (os.getpid(), 100), (gone, 0)]
    assert found[1].name == psutil.Process().name()
    assert [str(holder) for holder in found[2:]] == [f"a process (pid {gone})"]
    assert str(Holder(7, "python", 8_100_000_000)) == "python (pid 7, 8.1 GB)"


def test_a_card_that_names_no_process_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("a")
    monkeypatch.setattr(resources, "_nvml", lambda: driver)
    monkeypatch.setattr(driver, "nvmlDeviceGetComputeRunningProcesses", driver.nvmlDeviceGetPowerUsage)
    assert resources.holders(Device("cuda:0", "a", 1, 2)) == []
    assert resources.holders(Device("cuda:9", "b", 1, 2)) == []


def test_in_main_memory_the_largest_process_is_named() -> None:
    found = resources.holders(Device("cpu", "CPU", 1, 2), at_most=2)
    everyone = {process.pid for process in psutil.process_iter()}
    assert 1 <= len(found) <= 2
    assert found == sorted(found, key=lambda holder: -holder.bytes)
    assert found[0].bytes >= psutil.Process().memory_info().rss
    assert everyone & {holder.pid for holder in found}


def test_what_is_free_is_what_is_not_used() -> None:
    assert Device("cuda:0", "a", 3, 10).memory_free == 7
    assert Device("cuda:0", "a", 0, 0).memory_free == 0
    assert [Device(name, "", 0, 0).type for name in ("cuda:1", "mps", "cpu")] == ["cuda", "mps", "cpu"]
