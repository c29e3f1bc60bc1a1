"""What this machine has: devices to train on, their load, room on the disk. Never imports torch."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from engine.errors import NoSpace

GIB = 1024**3


@dataclass(frozen=True)
class Device:
    """A device as shown: memory in bytes, utilisation in percent, temperature in °C, power in watts."""

    name: str  # a torch device string
    label: str
    memory_used: int
    memory_total: int
    utilisation: float | None = None
    temperature: float | None = None
    power: float | None = None


@lru_cache(maxsize=1)
def _nvml() -> Any:
    """Return the initialised NVML module, or None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml
    except Exception:  # noqa: BLE001  (a broken driver fails in many ways; each means "no card to use")
        return None


def _read(call: Any, *arguments: Any) -> float | None:
    try:
        return float(call(*arguments))
    except Exception:  # noqa: BLE001  (a card need not support every sensor)
        return None


def _cuda_device(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    label = nvml.nvmlDeviceGetName(handle)
    power = _read(nvml.nvmlDeviceGetPowerUsage, handle)
    utilisation = _read(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return Device(
        name=f"cuda:{index}",
        label=label.decode() if isinstance(label, bytes) else str(label),
        memory_used=int(memory.used),
        memory_total=int(memory.total),
        utilisation=utilisation,
        temperature=_read(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        power=None if power is None else power / 1000,
    )


def devices() -> list[Device]:
    """Return the devices that jobs may use, each of which takes one job at a time: cards, else Metal, else the CPU."""
    nvml = _nvml()
    count = int(nvml.nvmlDeviceGetCount()) if nvml else 0
    if count:
        return [_cuda_device(nvml, index) for index in range(count)]
    memory = psutil.virtual_memory()
    used = int(memory.total - memory.available)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return [Device("mps", "Apple GPU", used, int(memory.total))]
    cores = psutil.cpu_count() or 1
    return [Device("cpu", f"CPU, {cores} cores", used, int(memory.total), psutil.cpu_percent(interval=None))]


def free_bytes(path: Path) -> int:
    """Return the room left on the disk that holds `path`."""
    return shutil.disk_usage(path).free


def need_space(path: Path, bytes_needed: int, what: str) -> None:
    """Raise NoSpace unless the disk of `path` has room for 1.2 times `bytes_needed`."""
    free = free_bytes(path)
    if free < bytes_needed * 1.2:
        raise NoSpace(
            f"No disk space for {what}: it needs {size_text(int(bytes_needed * 1.2))}, {size_text(free)} is free "
            f"in {path}. Free some space or move FUSION_HOME to a larger disk."
        )


def size_text(count: int) -> str:
    """Return a number of bytes as text: 1.5 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
