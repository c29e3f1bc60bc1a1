"""A really small disk: a tmpfs of its own size, in a mount namespace of its own, gone with the process."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests import worker

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
NOT_PERMITTED = 77


def mount(folder: Path, size: str) -> bool:
    """Enter a namespace in which a tmpfs lies at `folder`; say whether this machine allows it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user = os.getuid()
    unshare = getattr(libc, "unshare", None)
    if unshare is None:
        return False  # macOS has no namespaces
    if unshare(CLONE_NEWNS):
        # Who is not root is it in a user namespace of his own.
        if unshare(CLONE_NEWUSER | CLONE_NEWNS):
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    private = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False).returncode == 0
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    return private and subprocess.run(command, capture_output=True, check=False).returncode == 0


def on_a_small_disk(
    folder: Path,
    size: str,
    work: Callable[..., object],
    *arguments: object,
    begin: Callable[..., BaseProcess] = worker.begin,
) -> None:
    """Do a module's function in a process that sees a tmpfs of `size` at `folder`; skip where nobody may mount one."""
    folder.mkdir(exist_ok=True)
    process = begin(_inside, folder, size, work, arguments)
    process.join(120)
    if process.exitcode == NOT_PERMITTED:
        pytest.skip("this machine lets nobody mount a small disk: neither root nor in a user namespace")
    assert process.exitcode == 0, "see the output above"


def _inside(folder: Path, size: str, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    if not mount(folder, size):
        os._exit(NOT_PERMITTED)
    work(*arguments)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Fill the disk of `folder` to the last page; return the file that does so. `leave` bytes stay free."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
        if leave:
            file.truncate(max(0, file.tell() - leave))
    return path
