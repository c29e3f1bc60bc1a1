"""HTTP as bytes: what a client library would mend or refuse to send, sent as it is."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

WAIT_S = 10.0  # more than any deadline that a test sets; reaching it is a hang


@dataclass(frozen=True)
class Answer:
    """One response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> Any:
        """What an error says."""
        return json.loads(self.body)["detail"]


class Wire:
    """One connection to a server of this machine."""

    def __init__(self, port: int, *, window: int | None = None) -> None:
        self.socket = socket.socket()
        if window is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(("127.0.0.1", port))
        self._received = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send bytes; say whether the server still took them."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def take(self) -> bytes:
        """Return what comes next, or nothing when the server hung up. Raises TimeoutError."""
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""

    def _more(self) -> bool:
        part = self.take()
        self._received += part
        return bool(part)

    def answer(self, method: str = "GET") -> Answer | None:
        """Return the next final response, or None when the server hung up before a whole one. Raises TimeoutError."""
        while b"\r\n\r\n" not in self._received:
            if not self._more():
                return None
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        number = int(status.split(" ")[1])
        if number == 100:
            return self.answer(method)
        length = 0 if method == "HEAD" or number == 204 else int(headers["content-length"])
        while len(self._received) < length:
            if not self._more():
                return None
        body, self._received = self._received[:length], self._received[length:]
        return Answer(number, headers, body)

    def hung_up(self) -> bool:
        """Read on until the server hangs up; say whether nothing more came. Raises TimeoutError."""
        while self._more():
            pass
        return not self._received


def head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return a request without a body; names and values as they are."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode()
