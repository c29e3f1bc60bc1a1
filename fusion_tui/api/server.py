"""The API's application, and the thread of the background process that serves it.

The rule: the socket is bound before the thread starts, so a server that cannot listen says so to whoever starts it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

import psutil
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from engine.errors import EngineError
from engine.jobs.editing import JobEdit
from engine.jobs.specs import REQUESTS
from engine.service import Service, package_version
from fusion_tui.api import body, docs, errors, signed
from fusion_tui.api.commits import Commits
from fusion_tui.api.document import DESCRIPTION, TAGS, complete
from fusion_tui.api.felix import routes as felix
from fusion_tui.api.fusion.entries import NewDataset, NewUpload
from fusion_tui.api.fusion.keys import NewKey
from fusion_tui.api.fusion.recommend import RecommendRequest
from fusion_tui.api.fusion.routes import ROUTERS
from fusion_tui.api.guard import MAX_HEADER_BYTES, MAX_TARGET, Guard
from fusion_tui.api.wire import BoundedH11Protocol
from store.errors import StoreError

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 15.0  # a write may wait ten seconds for the store
KEEP_ALIVE_S = 5
# A request changes threads twice, and each time waits this long for every one that computes; Python's own are 5 ms.
SWITCH_S = 0.001
HEADERS = [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")]


class Api(FastAPI):
    """The application, with the bodies that the service validates described in its OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if not self.openapi_schema:
            document = super().openapi()
            bodies: list[type[BaseModel]] = [
                errors.Problem,
                errors.InvalidFields,
                *REQUESTS.values(),
                NewDataset,
                NewUpload,
                RecommendRequest,
                NewKey,
                JobEdit,
            ]
            bodies += felix.BODIES
            document["components"]["schemas"].update(body.schemas(bodies))
            complete(document)
        assert self.openapi_schema is not None
        return self.openapi_schema


def create_app(service: Service) -> FastAPI:
    """Return the application over `service`."""
    app = Api(
        title="Fusion TUI",
        version=package_version(),
        summary="Train language models on your own card.",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        docs_url=None,  # the stock page loads scripts from the network; `docs` has ours
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.commits = Commits(service)
    for prefix, routers in (("", ROUTERS), ("/api", ROUTERS), ("/felix", felix.ROUTERS), ("", felix.AT_ROOT)):
        for router in routers:
            app.include_router(router, prefix=prefix)
    app.include_router(docs.router)
    app.include_router(signed.router)  # once: elsewhere, a key would open what needs a signature
    errors.install(app)
    app.add_middleware(Guard, service=service)
    return app


class _Server(uvicorn.Server):
    """A uvicorn server that tells when it has started, or that it has ended, and ends its streams when it stops."""

    def __init__(self, config: uvicorn.Config, commits: Commits) -> None:
        super().__init__(config)
        self.decided = threading.Event()
        self._commits = commits

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        self.decided.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop. A stream goes on for as long as its job, so it has to be told."""
        self._commits.stop()
        await super().shutdown(sockets)


def is_loopback(host: str) -> bool:
    """Say whether `host` is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _user_of(port: int) -> str:
    """Return ' by NAME (process N)' for the process that listens on `port`, or '' where that cannot be seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            address = tuple(connection.laddr)
            if connection.status == psutil.CONN_LISTEN and address[1:] == (port,) and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any free one. Raises EngineError."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            # A restart must not wait for the old connections to time out; it never shares a port that is listened on.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Here, not in the loop: two sockets may be bound to one port, but only one can listen.
        listener.listen(128)
        return listener
    except OSError as error:
        if listener is not None:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise EngineError(
                f"Port {port} on {host} is in use{_user_of(port)}. "
                "Stop what uses it, or set FUSION_PORT / --port to another."
            ) from None
        raise EngineError(
            f"The API cannot listen on {host}, port {port} ({error.strerror}). Set another host or port."
        ) from None


class ApiServer:
    """The API on one address, in a thread of its own."""

    def __init__(self, service: Service, host: str, port: int) -> None:
        """Prepare to serve `service`; nothing is bound yet."""
        self._service = service
        self._host = host
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address for a client on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    def start(self) -> None:
        """Listen and serve. Raises EngineError when the address cannot be had, or is open to others without a key."""
        if not is_loopback(self._host) and not self._service.keys():
            raise EngineError(
                f"The API does not listen on {self._host} while there is no key. Make one with: fusion-tui token"
            )
        listener = bind(self._host, self._port)
        self._port = listener.getsockname()[1]
        app = create_app(self._service)
        with suppress(StoreError, OSError):  # another start, or the next upload, does it
            self._service.uploads.sweep()
        self._server = _Server(
            uvicorn.Config(
                app,
                http=BoundedH11Protocol,
                loop="auto",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=HEADERS,
                h11_max_incomplete_event_size=MAX_TARGET + MAX_HEADER_BYTES,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=3,
            ),
            app.state.commits,
        )
        sys.setswitchinterval(SWITCH_S)
        self._thread = threading.Thread(target=self._serve, args=(self._server, listener), name="api", daemon=True)
        self._thread.start()
        self._server.decided.wait(START_DEADLINE_S)
        if not self._server.started:
            self.stop()
            raise EngineError(f"The API on {self._host}, port {self._port} did not start; the log says why.")

    @staticmethod
    def _serve(server: _Server, listener: socket.socket) -> None:
        try:
            server.run(sockets=[listener])
        finally:
            listener.close()
            server.decided.set()

    def stop(self) -> None:
        """Finish the requests under way and close. Harmless when not started."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_DEADLINE_S)
        self._server = self._thread = None
