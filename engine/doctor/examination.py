"""The examination: every check in its order, and what it found.

The rule: a check that fails to run is a finding too, never an end of the examination.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine.doctor import background, folder, software, work
from engine.doctor.finding import Finding, Machine, Unread
from engine.errors import EngineError
from store import StoreError

Check = Callable[[Machine], Iterator[Finding]]

# In the order in which they are told; what takes seconds stands last.
CHECKS: tuple[tuple[str, Check], ...] = (
    ("python", software.python),
    ("settings", software.settings),
    ("folder", folder.permissions),
    ("disk", folder.disk),
    ("sqlite", software.sqlite),
    ("store", folder.store),
    ("supervisor", background.supervisor),
    ("port", background.port),
    ("workers", background.workers),
    ("logind", background.logind),
    ("catalogue", work.entries),
    ("leftovers", folder.leftovers),
    ("checkpoints", work.checkpoints),
    ("device", software.device),
    ("trainer", software.training),
)


def examine(machine: Machine) -> Iterator[Finding]:
    """Make every check, and give each finding when it is made, until `machine.stopped`.

    Changes nothing, and never raises.
    """
    for name, check in CHECKS:
        if machine.stopped():
            return
        yield from _carried_out(name, check, machine)


def _carried_out(name: str, check: Check, machine: Machine) -> Iterator[Finding]:
    try:
        yield from check(machine)
    except Unread:
        yield Finding(name, "warning", "not looked at: the store cannot be read", "See what is said of the store.")
    except (EngineError, StoreError) as error:
        yield Finding(name, "error", str(error))
    except OSError as error:
        words = f"could not be looked at: {error.strerror or error} {error.filename or ''}".strip()
        yield Finding(name, "warning", words, "Run it as the user who owns the data folder.")
    except Exception as error:  # noqa: BLE001  (the edge of a check: what broke it is what it found)
        yield Finding(
            name, "warning", f"could not be looked at: {type(error).__name__}: {error}", "Please report this."
        )
