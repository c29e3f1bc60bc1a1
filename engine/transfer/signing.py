"""Addresses that carry their own permission: one method on one path, until a time.

The rule: whoever holds such an address may do what it says and nothing else, so it is made for one who could do it
with a key, ends within the hour, and is never written down.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from engine import atomic

LIFETIME_S = 3600
SECRET_BYTES = 32
_DIGITS_AT_MOST = 12  # of a time in seconds, with room for some thousand years


class Signer:
    """Signs and checks with a secret in a private file of the data folder, which the first signature makes."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Sign with the secret at `path`; nothing is read or made yet."""
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()

    def sign(self, method: str, path: str) -> str:
        """Return `path` (not yet quoted) quoted, with the query that opens it for `method` and the next hour.

        Raises OSError where the secret can be neither read nor made.
        """
        expires = str(int(self._clock()) + LIFETIME_S)
        with self._lock:
            key = self._read() or self._make()
        return f"{quote(path)}?expires={expires}&signature={_signature(key, method, path, expires)}"

    def fault(self, method: str, path: str, query: str) -> str:
        """Return why `query` does not open `path` (not quoted) for `method`; empty where it does."""
        fields = dict(part.partition("=")[::2] for part in query.split("&"))
        if set(fields) != {"expires", "signature"} or query.count("&") != 1:
            return "This address works only with the expires and signature that it was given with, and nothing else."
        expires = fields["expires"]
        if not (expires.isascii() and expires.isdigit() and len(expires) <= _DIGITS_AT_MOST):
            return "The signature of this address is wrong. Ask for a new one."
        # Not made here: who asks without a key changes nothing, and what no secret signed is wrong.
        key = self._read()
        right = _signature(key, method, path, expires) if key else ""
        # Before the time: to one who made it up, the answer says nothing of ours.
        if not (right and hmac.compare_digest(right.encode(), fields["signature"].encode())):
            return "The signature of this address is wrong: it opens one method on one path. Ask for a new one."
        if int(expires) < self._clock():
            return "This address has expired. Ask for a new one."
        return ""

    def _read(self) -> bytes:
        # Anew each time, so that whoever removes the file ends every address that was given out.
        try:
            secret = bytes.fromhex(self._path.read_text().strip())
        except (FileNotFoundError, ValueError):
            return b""
        return secret if len(secret) == SECRET_BYTES else b""

    def _make(self) -> bytes:
        # Of two processes that make one at the same moment, the addresses of the faster one end at once.
        secret = secrets.token_bytes(SECRET_BYTES)
        atomic.write_bytes(self._path, secret.hex().encode() + b"\n")
        return secret


def _signature(key: bytes, method: str, path: str, expires: str) -> str:
    text = f"{method}\n{expires}\n{path}"  # the path last: it may hold anything
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
