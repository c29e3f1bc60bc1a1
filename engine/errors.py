"""What can go wrong with a request, in words that name the thing and the remedy.

The faces turn each class into one answer: the command line into an exit code, the API into a status.
"""

from __future__ import annotations

from dataclasses import dataclass


class EngineError(Exception):
    """A request that could not be carried out; its text is meant for the user."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a request: where (a path of field names) and what."""

    loc: tuple[str | int, ...]
    message: str
    kind: str = "value_error"

    def __str__(self) -> str:
        where = ".".join(str(part) for part in self.loc)
        return f"{where}: {self.message}" if where else self.message


class InvalidRequest(EngineError):
    """Fields of the wrong name, type or range."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults


class UnknownReference(EngineError):
    """A model or dataset that the request names does not exist."""


class InvalidData(EngineError):
    """A dataset or model that cannot be used, with the file and row; `row` is the place of the first that is bad."""

    def __init__(self, text: str, *, row: int | None = None) -> None:
        super().__init__(text)
        self.row = row


class Conflict(EngineError):
    """The thing exists in a state, or with a content, that rules the request out."""


class KeyReused(Conflict):
    """An idempotency key came again with another request."""


class NotAllowed(EngineError):
    """The key that asks may not do this."""


class NoSpace(EngineError):
    """The disk lacks room for what the request would write."""


class Unsupported(EngineError):
    """The request asks for what this device or this model does not have."""


class DiskFailed(EngineError):
    """The disk refused a write for another reason than a lack of room: an error of the device, a read-only mount."""
