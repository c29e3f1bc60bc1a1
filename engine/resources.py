"""What this machine has: devices to train on, their load, room on the disk. Never imports torch."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.errors import EngineError, NoSpace

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


def _visible(nvml: Any) -> list[Any]:
    """Return the handles of the cards in torch's order: all, or those that CUDA_VISIBLE_DEVICES leaves."""
    count = int(nvml.nvmlDeviceGetCount())
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    handles = []
    for part in (part.strip() for part in named.split(",")):
        if part.isdecimal() and int(part) < count:
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(part)))
        elif part.startswith("GPU-"):
            handles.append(nvml.nvmlDeviceGetHandleByUUID(part))
        else:
            break  # as CUDA does: what follows an entry that is no card is not seen
    return handles


def _cuda_device(nvml: Any, index: int, handle: Any) -> Device:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        used, total = int(memory.used), int(memory.total)
    except nvml.NVMLError:
        used, total = 0, 0  # boards with unified memory do not tell
    label = nvml.nvmlDeviceGetName(handle)
    power = _read(nvml.nvmlDeviceGetPowerUsage, handle)
    utilisation = _read(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return Device(
        name=f"cuda:{index}",
        label=label.decode() if isinstance(label, bytes) else str(label),
        memory_used=used,
        memory_total=total,
        utilisation=utilisation,
        temperature=_read(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        power=None if power is None else power / 1000,
    )


def devices() -> list[Device]:
    """Return the devices that jobs may use, each of which takes one job at a time: cards, else Metal, else the CPU."""
    nvml = _nvml()
    try:
        cards = [_cuda_device(nvml, index, handle) for index, handle in enumerate(_visible(nvml))] if nvml else []
    except nvml.NVMLError as error:
        raise EngineError(f"The NVIDIA driver does not answer ({error}). See nvidia-smi; a reboot may help.") from None
    if cards:
        return cards
    import psutil

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
