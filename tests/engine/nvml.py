"""The part of NVML that is used, for a machine with cards: no driver is on a test machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


@dataclass
class Card:
    """A card as the driver tells of it: bytes in all and taken, and who took them (pid: bytes or None)."""

    name: str
    total: int = 2
    used: int = 1
    compute: dict[int, int | None] = field(default_factory=dict)
    graphics: dict[int, int | None] = field(default_factory=dict)


class Driver:
    """Answers as the module `pynvml` does."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """The driver's own error."""

    def __init__(self, *cards: Card | str, tells_memory: bool = True, lost: bool = False) -> None:
        self.cards = [Card(card) if isinstance(card, str) else card for card in cards]
        self._tells_memory = tells_memory
        self._lost = lost

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self._lost:
            raise self.NVMLError("GPU is lost")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:  # noqa: N802
        return next(card for card in self.cards if uuid == f"GPU-{card.name}")

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:  # noqa: N802
        if not self._tells_memory:
            raise self.NVMLError("not supported")
        return SimpleNamespace(used=card.used, total=card.total)

    def nvmlDeviceGetName(self, card: Card) -> str:  # noqa: N802
        return card.name

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in card.compute.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in card.graphics.items()]

    def _no_sensor(self, *arguments: object) -> float:
        raise self.NVMLError("not supported")

    nvmlDeviceGetPowerUsage = nvmlDeviceGetUtilizationRates = nvmlDeviceGetTemperature = _no_sensor  # noqa: N815
