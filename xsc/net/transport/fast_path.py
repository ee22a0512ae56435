"""Answers small requests before the general HTTP server, which gets all others.

As long as a connection brings small requests (`xsc.net.transport.parser`), each is answered here,
one at a time. The first request that is not small, or is not received whole in time, hands the
connection over to the general server for good, with every byte of that request: no request
is split between two parsers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeAlias

from xsc.base.errors import FrameInvalid
from xsc.base.limits import BODY_BYTES_A_SECOND_MIN, FAST_PATH_BYTES_MAX, NO_PROGRESS_MS
from xsc.net.transport.addresses import source_of
from xsc.net.transport.connection import Connection, pieces
from xsc.net.transport.flow import Flow
from xsc.net.transport.gate import Gate
from xsc.net.transport.parser import SmallRequest, answer_head, read_request
from xsc.net.transport.port import RawResponse

Answer: TypeAlias = Callable[[SmallRequest], Awaitable[RawResponse]]
"""Answers a request; raises nothing."""


class FastPath:
    """Makes the connections of one server, and waits for the requests that they answer."""

    def __init__(
        self,
        server: Callable[[], asyncio.Protocol],
        answer: Answer,
        gate: Gate,
        *,
        progress_ms: int = NO_PROGRESS_MS,
        paths: Collection[str] | None = None,
    ) -> None:
        """Set up the fast path of a server.

        Args:
            server: makes the general server's protocol of a connection.
            answer: answers small requests.
            gate: admits connections, and closes idle ones; the server reports to it on
                connections that were handed over.
            progress_ms: the window in which the caller must read what is due of a large
                answer; also how long the rest of a request may take before the connection is
                handed over.
            paths: the paths of small requests; None for all.
        """
        self.answer = answer
        self.gate = gate
        self.progress_ms = progress_ms
        self.paths = paths
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self) -> FastPathConnection:
        """Return the protocol of a new connection."""
        return FastPathConnection(self, self._server())

    def spawn(self, connection: FastPathConnection, request: SmallRequest) -> None:
        """Start to answer a request."""
        task = asyncio.get_running_loop().create_task(connection.serve(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ended(self, timeout_s: float) -> None:
        """Wait until no request is under way; cancel those that take longer than `timeout_s`."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class FastPathConnection(Connection, asyncio.Protocol):
    """One connection to a server, until it is handed over to the general protocol."""

    def __init__(self, path: FastPath, inner: asyncio.Protocol) -> None:
        super().__init__()
        self._path = path
        self._inner = inner
        self._held = b""
        """Received and not answered yet."""
        self._wanted = 1
        """The least size of the request in bytes."""
        self._patience: asyncio.TimerHandle | None = None
        self._busy = False
        self._source = ""
        self._handed_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have the gate admit a connection, and begin to serve it."""
        assert isinstance(transport, asyncio.Transport)
        if not self._path.gate.enter(transport):
            return
        super().connection_made(transport)
        peername = transport.get_extra_info("peername")
        self._source = source_of(str(peername[0])) if peername else ""
        # An answer counts as written only once the system has all of it.
        transport.set_write_buffer_limits(high=1, low=0)
        self._inner.connection_made(transport)
        if self._held:
            self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the gate. A request that is under way goes on, and its answer is dropped."""
        if self._transport is None:
            return
        self._stop_patience()
        self._path.gate.leave(self._transport)
        super().connection_lost(exc)
        # A broken TLS record and a silent network end it as the caller does: handlers know that.
        if exc is not None and not isinstance(exc, ConnectionError):
            exc = ConnectionResetError(str(exc))
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Stop writing: the caller does not read."""
        super().pause_writing()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        self._inner.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take received bytes; after a TLS handshake some arrive before `connection_made`."""
        if self._handed_over:
            self._inner.data_received(data)
            return
        self._held = self._held + data if self._held else data
        if self._transport is None:
            return
        if not self._busy:
            self._read()
        elif len(self._held) > FAST_PATH_BYTES_MAX:
            self._transport.pause_reading()

    def eof_received(self) -> bool | None:
        """Pass the end of the caller's bytes on to the general server."""
        return self._inner.eof_received() if self._handed_over else None

    def _read(self) -> None:
        """Read a request, once it is received whole."""
        if len(self._held) < self._wanted:
            return
        found = read_request(self._held, self._path.paths, self._source)
        if found is None:
            self._hand_over()
        elif isinstance(found, int):
            self._wanted = found
            if self._patience is None:
                loop = asyncio.get_running_loop()
                self._patience = loop.call_later(self._path.progress_ms / 1000, self._hand_over)
        else:
            self._stop_patience()
            self._held, self._wanted, self._busy = b"", 1, True
            assert self._transport is not None
            self._path.gate.busy(self._transport)
            self._path.spawn(self, found)

    async def serve(self, request: SmallRequest) -> None:
        """Answer one request."""
        whole = False
        try:
            answer = await self._path.answer(request)
            try:
                await self._write(answer)
            finally:
                answer.sent()
            whole = True
        finally:
            self._busy = False
            if self._transport is not None and not self._transport.is_closing():
                if whole:
                    self._path.gate.quiet(self._transport)
                    self._transport.resume_reading()
                    self._read()
                else:
                    self._transport.abort()

    async def _write(self, answer: RawResponse) -> None:
        """Write an answer as fast as the caller reads it; a caller that has gone is no error."""
        flow: Flow | None = None
        size = sum(len(buffer) for buffer in answer.body)
        head = answer_head(answer.status, answer.headers, size)
        for piece in pieces([head, *answer.body]):
            if self._transport is None or self._transport.is_closing():
                return
            self._transport.write(piece)
            if not self._writable.is_set():
                loop = asyncio.get_running_loop()
                flow = flow or Flow(loop.time(), self._path.progress_ms, BODY_BYTES_A_SECOND_MIN)
                try:
                    async with flow.step():
                        await self._writable.wait()
                except FrameInvalid:
                    # The caller does not read, so no error can be sent to it.
                    if self._transport is not None:
                        self._transport.abort()
                    return
                flow.moved(loop.time(), len(piece))

    def _hand_over(self) -> None:
        """Leave the connection, and what was received of the request, to the general server."""
        assert self._transport is not None
        self._stop_patience()
        held, self._held, self._handed_over = self._held, b"", True
        self._inner.data_received(held)

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
