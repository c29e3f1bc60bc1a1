"""What the software is fit for: the interpreters, SQLite, the settings, the device with its driver, the trainer's own.

The rule: what only the training interpreter can know, it is asked in a process of its own, with a time limit.
"""

from __future__ import annotations

import json
import platform
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from typing import Any

from engine import process
from engine.doctor.finding import Finding, Machine
from engine.errors import EngineError
from engine.resources import size_text
from engine.settings import settings_file
from store.db import wal_is_safe

PYTHON_LEAST = (3, 10)


def python(_: Machine) -> Iterator[Finding]:
    """Look at the interpreter that this runs in."""
    words = f"Python {platform.python_version()} ({sys.executable})"
    if sys.version_info >= PYTHON_LEAST:
        yield Finding("python", "ok", words)
    else:
        yield Finding("python", "error", words, "Install fusion-tui with Python 3.10 or later.")


def settings(machine: Machine) -> Iterator[Finding]:
    """Look at the settings file."""
    path = settings_file()
    if machine.settings_error:
        remedy = f"Correct {path}; until then no command runs."
        yield Finding("settings", "error", machine.settings_error, remedy)
    else:
        yield Finding(
            "settings", "ok", str(path) if path.exists() else f"no file {path}: every setting has its default"
        )


def sqlite(_: Machine) -> Iterator[Finding]:
    """Look at the SQLite that Python brings, which decides how the store's journal is kept."""
    mode = "WAL" if wal_is_safe(sqlite3.sqlite_version_info) else "DELETE, for its WAL mode may damage a store"
    yield Finding("sqlite", "ok", f"SQLite {sqlite3.sqlite_version}; journal mode {mode}")


def device(machine: Machine) -> Iterator[Finding]:
    """Look at the devices that runs would get, and at the driver of cards that do not show."""
    try:
        found = machine.devices()
    except EngineError as error:
        yield Finding("device", "error", str(error), "Look at nvidia-smi and dmesg; a lost card needs a reboot.")
        return
    trouble = _driver_trouble(machine) if not any(one.type == "cuda" for one in found) else ""
    if trouble:
        remedy = "After an update of the driver reboot; in a container start it with the cards (--gpus all)."
        yield Finding("device", "error", trouble, remedy)
    for one in found:
        free = f"{size_text(one.memory_free)} of {size_text(one.memory_total)} free"
        yield Finding("device", "ok", f"{one.label} ({one.name}), {free}{_driver(one.type)}")


def _driver_trouble(machine: Machine) -> str:
    """Return what keeps NVIDIA's driver, where one is there, from showing its cards."""
    loaded = machine.root / "proc/driver/nvidia/version"
    if not loaded.exists():
        return ""
    try:
        import pynvml

        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
    except Exception as error:  # noqa: BLE001  (a broken driver fails in many ways, and each is the finding)
        return f"The NVIDIA driver is loaded, but does not answer: {error}"
    return "" if count else "The NVIDIA driver is loaded, but shows no card"


def _driver(kind: str) -> str:
    if kind != "cuda":
        return ""
    try:
        import pynvml

        version = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        return f", driver {pynvml.nvmlSystemGetDriverVersion()} (up to CUDA {version // 1000}.{version % 1000 // 10})"
    except Exception:  # noqa: BLE001  (as above; only a version is missing then)
        return ""


def training(machine: Machine) -> Iterator[Finding]:
    """Ask the training interpreter for its Python, torch and bitsandbytes, and try them on the device."""
    interpreter = machine.settings.trainer_python
    if shutil.which(interpreter) is None:
        remedy = "Set trainer_python to an interpreter that has torch and fusion-tui, or leave it out."
        yield Finding("trainer", "error", f"trainer_python is {interpreter}, which is no program here", remedy)
        return
    machine.tell("asking the training interpreter (loading torch takes seconds)")
    deadline = time.monotonic() + machine.training_seconds
    try:
        answer = process.run_tool(
            "engine.trainer.stack",
            [],
            python=interpreter,
            stopped=lambda: machine.stopped() or time.monotonic() > deadline,
        )
        facts = json.loads(answer.splitlines()[-1])
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        if machine.stopped():
            return
        late = time.monotonic() > deadline
        why = f"did not answer within {machine.training_seconds:.0f} s" if late else f"fails: {error}"
        remedy = f"Try it by hand: {interpreter} -m engine.trainer.stack; fusion-tui is installed there by --no-deps."
        yield Finding("trainer", "error", f"{interpreter} {why}", remedy)
        return
    yield Finding("trainer", "ok", f"Python {facts['python']} ({interpreter}), fusion-tui {facts['package']}")
    yield _torch(facts, machine)
    yield _bitsandbytes(facts)


def _torch(facts: dict[str, Any], machine: Machine) -> Finding:
    torch = facts["torch"]
    if "error" in torch:
        remedy = f"{machine.settings.trainer_python} -m pip install 'torch>=2.10'"
        return Finding("torch", "error", f"cannot be imported: {torch['error']}", remedy)
    build = f"for CUDA {torch['cuda']}" if torch["cuda"] else "without CUDA"
    words = f"torch {torch['version']}, built {build}, works on {torch['device']}"
    try:
        has_card = any(one.type == "cuda" for one in machine.devices())
    except EngineError:
        has_card = False  # told by the device's own check
    if has_card and torch["device"] != "cuda":
        remedy = "Install the build of torch that fits the driver (https://pytorch.org), or update the driver."
        return Finding("torch", "error", f"{words}: the card of this machine is out of its reach", remedy)
    if torch["unfit"]:
        remedy = "Install a build of torch that has kernels for this card (https://pytorch.org)."
        return Finding("torch", "error", f"{words}, but fails there: {torch['unfit']}", remedy)
    gain = "16-bit products (bf16)" if torch["bf16"] else "no bf16 of its own: 16-bit products would be slower here"
    return Finding("torch", "ok", f"{words}, {gain}")


def _bitsandbytes(facts: dict[str, Any]) -> Finding:
    found = facts["bitsandbytes"]
    if "error" in found:
        words = f"{found.get('version', 'not installed')}: {found['error']}"
        remedy = "LoRA on 4 bits and the 8-bit optimizer need it: pip install -U bitsandbytes. Other runs do not."
        return Finding("bitsandbytes", "warning", words, remedy)
    return Finding("bitsandbytes", "ok", f"bitsandbytes {found['version']} quantises on {found['device']}")
