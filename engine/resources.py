"""What this machine has: devices to train on, their load, room on the disk. Never imports torch."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

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

    @property
    def memory_free(self) -> int:
        """Bytes that a run may take now; on the CPU what other processes do not need."""
        return max(0, self.memory_total - self.memory_used)

    @property
    def type(self) -> Literal["cuda", "mps", "cpu"]:
        """What kind of device it is, as torch says it."""
        return "cuda" if self.name.startswith("cuda") else "mps" if self.name == "mps" else "cpu"


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a device, in bytes; 0 where the driver does not tell."""

    pid: int
    name: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}{', ' + size_text(self.bytes) if self.bytes else ''})"


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


def holders(device: Device, at_most: int = 3) -> list[Holder]:
    """Return the processes that hold most of a device's memory: all that the driver names, or the largest of this
    machine where its main memory is meant. Empty where they cannot be seen, as from within a container."""
    found = _on_card(device) if device.type == "cuda" else _in_memory()
    return sorted(found, key=lambda holder: holder.bytes, reverse=True)[:at_most]


def _on_card(device: Device) -> list[Holder]:
    nvml = _nvml()
    if not nvml:
        return []
    try:
        handle = _visible(nvml)[int(device.name.removeprefix("cuda:"))]
        running = [
            *nvml.nvmlDeviceGetComputeRunningProcesses(handle),
            *nvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
        ]
    except (nvml.NVMLError, IndexError):
        return []
    taken = {process.pid: int(process.usedGpuMemory or 0) for process in running}
    return [Holder(pid, _name(pid), size) for pid, size in taken.items()]


def _name(pid: int) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "a process"


def _in_memory() -> list[Holder]:
    import psutil

    return [
        Holder(process.pid, process.info["name"] or "a process", process.info["memory_info"].rss)
        for process in psutil.process_iter(["name", "memory_info"])
        if process.info["memory_info"]
    ]


@lru_cache(maxsize=1)
def cpu_has_fast_bf16() -> bool:
    """Say whether the CPU multiplies bf16 itself, as `engine.trainer.device` asks torch; without that it is no gain."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_tile" in flags


def multiplies_in_16_bits(device_type: str) -> bool:
    """Say whether a device of this type trains with 16-bit frozen weights and products."""
    return device_type == "cuda" or (device_type == "cpu" and cpu_has_fast_bf16())


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
