"""The background process: supervisor and HTTP API around one service, and how the faces find or start it.

The rule: this is the only module that puts the supervisor and the API together. Run: python -m fusion_tui.daemon
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from engine import process
from engine.paths import Home


@dataclass(frozen=True)
class SupervisorInfo:
    """A running supervisor: its process and the address of its API (None where it serves none)."""

    identity: process.Identity
    url: str | None


def running(home: Home) -> SupervisorInfo | None:
    """Return the supervisor of this data folder, if one runs."""
    try:
        fields = json.loads(home.supervisor_info.read_text())
        identity = process.Identity(fields["boot_id"], fields["pid"], fields["start_ticks"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return SupervisorInfo(identity, fields.get("url")) if process.is_alive(identity) else None


def ensure_running(home: Home) -> SupervisorInfo:
    """Return the running supervisor, starting one in the background where there is none.

    Raises EngineError with the last lines of its log when it does not come up in 20 s.
    """
    raise NotImplementedError
