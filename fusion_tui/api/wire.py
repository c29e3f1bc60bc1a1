"""The bytes below ASGI: what uvicorn's h11 protocol leaves open.

The rule: a connection on which no request is being answered, or whose client does not take its answer, always has a
timer running, so that silence or single bytes never hold one of the few places; and whatever is refused is refused as
`{"detail": …}`.
"""

from __future__ import annotations

import asyncio
import socket
import struct

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fusion_tui.api import errors

MAX_CONNECTIONS = 64
# Beyond MAX_CONNECTIONS, so many more may wait to be told 503; who comes then is hung up on: they take descriptors that
# the rest of this process needs.
MAX_REFUSALS = 64
HEADER_DEADLINE_S = 5.0
READ_DEADLINE_S = 30.0  # in which a client has to take something of an answer that waits for it


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    headers = errors.RETRY_SOON | {"Connection": "close"}
    await errors.problem(503, f"More than {MAX_CONNECTIONS} connections at once.", headers)(scope, receive, send)


class BoundedH11Protocol(H11Protocol):
    """HTTP/1.1 with a limit on connections and deadlines for a request's headers and for taking an answer."""

    _silence: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; beyond the limit, the one request of this connection is answered 503."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that whatever a client leaves waiting starts the clock on it
        if len(self.connections) > MAX_CONNECTIONS + MAX_REFUSALS:
            transport.abort()
            return
        if len(self.connections) > MAX_CONNECTIONS:
            self.app = _full
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; the clock stops with the end of the headers."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._unwatch()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the clock on a client that has an answer to take."""
        super().pause_writing()
        left = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(READ_DEADLINE_S, self._see_progress, left)

    def resume_writing(self) -> None:
        """Stop that clock: everything is taken."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _see_progress(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left < before:
            self._reading = self.loop.call_later(READ_DEADLINE_S, self._see_progress, left)
        else:
            # To close would wait for the client to take the rest; without a reset the kernel would.
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def _unwatch(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _watch(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing():
            self._unwatch()
        elif self._silence is None and self.timeout_keep_alive_task is None:
            self._silence = self.loop.call_later(HEADER_DEADLINE_S, self.transport.close)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered as any other, and the log is not for strangers to fill."""

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP request, unless an answer is on its way already, and hang up."""
        answer = errors.problem(400, msg)
        headers = [*answer.raw_headers, (b"connection", b"close")]
        try:
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass
        self.transport.close()
