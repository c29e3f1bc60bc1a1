"""API keys: who may make and revoke which.

The rule: nobody gives or takes what he has not: a key's scopes lie within those of the key that makes or revokes it.
The first key, in a private file, has all; where it was revoked there is a new one with the next start.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine import atomic
from engine.errors import NotAllowed
from engine.paths import Home
from store import NotFound, Store, keys
from store.keys import Key


@dataclass(frozen=True)
class NewKey:
    """A key as it is shown once, with its secret."""

    key: Key
    secret: str


def new_secret() -> str:
    """Return the secret of a new key."""
    return f"fus_{secrets.token_urlsafe(32)}"


def first(store: Store, home: Home, *, now: float, new_id: Callable[[], str]) -> str:
    """Return the secret in the token file, making it and its key where there is none or it was revoked."""
    path = home.token
    # The write lock keeps two first starts apart; the file may outlive a crash before the row was committed.
    with store.write() as db:
        secret = path.read_text().strip() if path.exists() else ""
        known = keys.is_known(db, secret)
        if not secret or (known and keys.authenticate(db, secret) is None):
            secret, known = new_secret(), False
            atomic.write_bytes(path, secret.encode() + b"\n")
        if not known:
            keys.add(db, id=new_id(), name="first key", secret=secret, scopes=keys.SCOPES, now=now)
    return secret


def make(store: Store, name: str, scopes: Sequence[str], *, by: Key | None, now: float, new_id: str) -> NewKey:
    """Make a key; `by` is the key that asks for it, None for a person at the machine. Raises NotAllowed."""
    beyond = [scope for scope in scopes if by is not None and scope not in by.scopes]
    if by is not None and beyond:
        raise NotAllowed(f"The key '{by.name}' cannot give what it lacks itself: {', '.join(beyond)}.")
    secret = new_secret()
    with store.write() as db:
        return NewKey(keys.add(db, id=new_id, name=name, secret=secret, scopes=tuple(scopes), now=now), secret)


def revoke(store: Store, key_id: str, *, by: Key | None, now: float) -> Key:
    """End a key, at once; one may end itself. Raises NotFound, NotAllowed."""
    with store.write() as db:
        found = next((key for key in keys.listing(db) if key.id == key_id), None)
        if found is None:
            raise NotFound(f"No key has the id {key_id}. See: fusion-tui keys")
        beyond = [scope for scope in found.scopes if by is not None and scope not in by.scopes]
        if by is not None and beyond:
            raise NotAllowed(f"The key '{by.name}' cannot revoke one with more scopes: {', '.join(beyond)}.")
        keys.revoke(db, key_id, now=now)
    return found
