"""Handing the terminal to the user's editor, and taking it back.

The rule: the app paints nothing meanwhile, and says which editor it looked for where there is none.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from textual.app import App, SuspendNotSupported

from engine.errors import EngineError

USUAL = ("nano", "vim", "vi")


def editor() -> list[str]:
    """Return the command of the editor: VISUAL, EDITOR, or one that is there. Raises EngineError."""
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    command = shlex.split(named) if named else [next(filter(shutil.which, USUAL), USUAL[0])]
    if not command or shutil.which(command[0]) is None:
        raise EngineError(f"The editor {named or 'nano, vim or vi'} is no program here. Set EDITOR to one that is.")
    return command


def edit_file(app: App[object], path: Path) -> None:
    """Open `path` in the editor, and return when the user leaves that. Raises EngineError, OSError."""
    command = editor()
    try:
        with app.suspend():
            code = subprocess.run([*command, str(path)], check=False).returncode
    except SuspendNotSupported:
        raise EngineError(
            f"This terminal cannot be handed to an editor. Edit {path} elsewhere, then press u."
        ) from None
    if code:
        raise EngineError(f"{command[0]} ended with {code}; {path} was read as it is.")
