"""Devices are counted as torch counts them, and a card that does not tell its memory is a card all the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import resources
from engine.errors import EngineError, NoSpace


class Driver:
    """The part of NVML that is used, for a machine with cards; no driver is on a test machine."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """The driver's own error."""

    def __init__(self, *names: str, tells_memory: bool = True, lost: bool = False) -> None:
        self._names = names
        self._tells_memory = tells_memory
        self._lost = lost

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self._lost:
            raise self.NVMLError("GPU is lost")
        return len(self._names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return self._names[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return next(name for name in self._names if uuid == f"GPU-{name}")

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        if not self._tells_memory:
            raise self.NVMLError("not supported")
        return SimpleNamespace(used=1, total=2)

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return handle

    def _no_sensor(self, *arguments: object) -> float:
        raise self.NVMLError("not supported")

    nvmlDeviceGetPowerUsage = nvmlDeviceGetUtilizationRates = nvmlDeviceGetTemperature = _no_sensor  # noqa: N815


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
