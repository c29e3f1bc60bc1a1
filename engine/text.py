"""Text from logs, data and models, made fit to be shown in a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean_text(text: str) -> str:
    """Return `text` without terminal control sequences, fit to be shown."""
    return _CONTROL.sub("", text)
