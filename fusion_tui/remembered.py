"""What the app comes back to when it is opened on the same store again: one small JSON file in the data folder.

The rule: it is a convenience. A file that is missing, damaged or cannot be written changes nothing but what is shown
first.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from engine import atomic
from engine.errors import EngineError
from engine.text import clean_text

LONGEST_FILE = 64_000  # bytes; ours has a few hundred
LONGEST_TEXT = 500  # characters


@dataclass(frozen=True)
class Remembered:
    """What was shown last. Empty texts mean: nothing in particular.

    `screen` is the open screen's scope, `run` the run that it showed; `selected` and `filter` are the list's; `axis`,
    `log_y` and `level` (of smoothing) the chart's. `theme` was chosen in the app while the setting was `theme_setting`:
    a setting that was changed since wins.
    """

    screen: str = ""
    run: str = ""
    selected: str = ""
    filter: str = ""
    axis: str = ""
    log_y: bool = False
    level: int = -1
    theme: str = ""
    theme_setting: str = ""

    def chosen_theme(self, setting: str) -> str:
        """Return the theme that was chosen in the app, empty where the setting was changed after that."""
        return self.theme if setting == self.theme_setting else ""


def read(path: Path) -> Remembered:
    """Return what the file holds, each value that makes no sense left out. Never raises for what is in it."""
    found: object = None
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file():  # never wait at a pipe
            with path.open("rb") as file:
                found = json.loads(file.read(LONGEST_FILE))
    if not isinstance(found, dict):
        return Remembered()
    kept: dict[str, Any] = {}
    for one in fields(Remembered):
        value = found.get(one.name)
        if type(value) is type(one.default):
            kept[one.name] = clean_text(value)[:LONGEST_TEXT] if isinstance(value, str) else value
    return Remembered(**kept)


def write(path: Path, remembered: Remembered) -> bool:
    """Replace the file; say whether that went well."""
    try:
        atomic.write_json(path, asdict(remembered))
    except (OSError, EngineError):
        return False
    return True
