"""What stands before every route: sizes, Host, Origin, and the key or, under /signed, the signature of the address.

The rule: nothing behind this middleware sees a request that any of these checks refuses, whatever its method or path.
No answer carries a CORS header, so a page of another site can neither read nor change anything here.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.service import Key, Service
from fusion_tui.api import docs, errors, threads
from store.errors import StoreError

MAX_BODY = 1024 * 1024
MAX_TARGET = 8 * 1024
MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 64
BODY_DEADLINE_S = 10.0
# Longer than any key made here, so that nobody has us hash a header's worth of text for each guess.
MAX_KEY = 256

OURS = ("localhost", "127.0.0.1", "[::1]")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
SIGNED = "/signed/"  # what is below it needs a signature, and a key is none
UPLOADS = f"{SIGNED}uploads/"
OPEN_PATHS = ("/health", "/api/health", "/openapi.json", *docs.PATHS)
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)


def is_upload(scope: Scope) -> bool:
    """Say whether a request's body is a file, which streams to the disk."""
    return bool(scope["method"] == "PUT" and scope["path"].startswith(UPLOADS))


def check_size(scope: Scope, headers: Headers, most: int = MAX_BODY) -> None:
    """Raise HTTPException for a request line, headers or a declared body over the limits, or two ways to count one."""
    if scope["http_version"] not in ("1.0", "1.1"):
        raise HTTPException(400, f"This server speaks HTTP/1.1, not HTTP/{scope['http_version']}.")
    if len(scope["method"]) + len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
        raise HTTPException(414, f"The request line is longer than {MAX_TARGET} bytes.")
    if len(headers.raw) > MAX_HEADERS or sum(len(n) + len(v) for n, v in headers.raw) > MAX_HEADER_BYTES:
        raise HTTPException(431, f"At most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together.")
    length = headers.get("content-length")
    if length is not None and "transfer-encoding" in headers:
        raise HTTPException(400, "Give Content-Length or Transfer-Encoding, not both.")
    if length is not None and int(length) > most:
        raise _too_large(most)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"The body is larger than {most} bytes.")


def is_ours(authority: str, port: int, allowed: tuple[str, ...], default_port: int = 80) -> bool:
    """Say whether `authority` (name or name:port, as in Host) is this server.

    A configured name is taken with any port, since a forwarded port or a proxy has one of its own; an entry
    with a port only with that one. Our own names need our own port.
    """
    match = _AUTHORITY.fullmatch(authority.lower())
    if not match:
        return False
    name, given = match[1], int(match[2] or default_port)
    return (name in OURS and given == port) or not {name, authority.lower()}.isdisjoint(map(str.lower, allowed))


def check_host(headers: Headers, port: int, allowed: tuple[str, ...]) -> None:
    """Raise HTTPException 421 unless the one Host header names this server: it ends DNS rebinding."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not is_ours(hosts[0], port, allowed):
        shown = hosts[0][:100] if hosts else ""
        raise HTTPException(
            421,
            f"This server does not answer to the host '{shown}'. Add it to allowed_hosts in the settings if it may.",
        )


def check_site(method: str, headers: Headers, port: int, allowed: tuple[str, ...]) -> None:
    """Raise HTTPException 403 for a request that could change something and that another site's page makes."""
    if method in SAFE_METHODS:
        return
    if any(site not in ("same-origin", "none") for site in headers.getlist("sec-fetch-site")):
        raise HTTPException(403, "Requests from pages of other sites are refused.")
    for origin in headers.getlist("origin"):
        scheme, _, authority = origin.partition("://")
        default_port = {"http": 80, "https": 443}.get(scheme)
        if default_port is None or not is_ours(authority, port, allowed, default_port):
            raise HTTPException(403, "Requests from pages of other origins are refused.")


def presented_secret(headers: Headers) -> str | None:
    """Return the key that a request carries, from `Authorization: Bearer` or `X-API-Key`."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    secret = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
    return secret if 0 < len(secret) <= MAX_KEY else None


class _BoundedBody:
    """An ASGI `receive` that counts the body and the time it takes: in all, or, of a file, from piece to piece."""

    def __init__(self, receive: Receive, most: int, *, is_file: bool) -> None:
        self._receive = receive
        self._most = most
        self._is_file = is_file
        self._size = 0
        self._whole = False
        self._end = asyncio.get_running_loop().time() + BODY_DEADLINE_S

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        left = BODY_DEADLINE_S if self._is_file else self._end - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0))
        except asyncio.TimeoutError:
            # The rest may still come: only closing keeps it from being read as the next request.
            raise HTTPException(
                408, f"The body took longer than {BODY_DEADLINE_S:.0f} s.", {"Connection": "close"}
            ) from None
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._size > self._most:
            raise _too_large(self._most)
        return message


class Guard:
    """The middleware. It puts the request's key at `request.state.key`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._impatient = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer what is wrong with it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            if scope["path"].startswith(SIGNED):
                self._check_signature(scope)
            elif not (scope["method"] in SAFE_METHODS and scope["path"] in OPEN_PATHS):
                scope.setdefault("state", {})["key"] = await self._authenticate(Headers(scope=scope))
        except (HTTPException, StoreError, sqlite3.Error) as error:
            await errors.answer(error, self._service.store.path)(scope, receive, send)
            return
        await self._app(scope, _BoundedBody(receive, self._most(scope), is_file=is_upload(scope)), send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        port = scope["server"][1]
        allowed = self._service.settings.allowed_hosts
        check_size(scope, headers, self._most(scope))
        check_host(headers, port, allowed)
        check_site(scope["method"], headers, port, allowed)

    def _most(self, scope: Scope) -> int:
        """Return how many bytes a request's body may have."""
        return self._service.uploads.most_bytes if is_upload(scope) else MAX_BODY

    def _check_signature(self, scope: Scope) -> None:
        """Raise HTTPException 403 unless the address was signed here, for this method and path, within the hour."""
        query = scope["query_string"].decode("latin-1")
        if fault := self._service.signer.fault(scope["method"], scope["path"], query):
            raise HTTPException(403, fault)

    async def _key_of(self, secret: str) -> Key | None:
        if not self._impatient:
            # This thread's connection, which is the loop's: what is done at once never waits for the store.
            self._service.store.read().execute("PRAGMA busy_timeout=0")
            self._impatient = True
        return await threads.at_once(self._service.authenticate, secret)

    async def _authenticate(self, headers: Headers) -> Key:
        """Return the request's key. Raises HTTPException 401. The store compares hashes, not secrets."""
        secret = presented_secret(headers)
        key = await self._key_of(secret) if secret else None
        if key is None:
            what = "The key is not known" if secret else "A key is needed"
            detail = (
                f"{what}. Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'; show it with: fusion-tui token"
            )
            raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})
        return key
