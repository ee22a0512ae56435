"""Connections whose small requests need no general HTTP parser; all others get one.

A `Front` stands before the protocol of an HTTP server. As long as a connection
brings plain requests (`xsc.net.transport.plain`), each is answered here, one at a time.
With the first request that is not, or that does not come to its end in time, the
connection is the server's for good, with every byte of that request: no request is
between two parsers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeAlias

from xsc.base.errors import FrameInvalid
from xsc.base.limits import BODY_BYTES_A_SECOND_MIN, NO_PROGRESS_MS, PLAIN_BYTES_MAX
from xsc.net.transport import plain
from xsc.net.transport.addresses import source_of
from xsc.net.transport.flow import Flow
from xsc.net.transport.gate import Gate
from xsc.net.transport.plain import Plain
from xsc.net.transport.port import RawResponse

Answer: TypeAlias = Callable[[Plain], Awaitable[RawResponse]]
"""Answers a request; raises nothing."""


class Fronts:
    """Makes the fronts of one server, and ends what they still do."""

    def __init__(
        self,
        server: Callable[[], asyncio.Protocol],
        answer: Answer,
        gate: Gate,
        *,
        progress_ms: int = NO_PROGRESS_MS,
        paths: Collection[str] | None = None,
    ) -> None:
        """Make the fronts of a server.

        Args:
            server: makes the protocol of a connection.
            answer: answers plain requests.
            gate: lets connections in, and cuts off those that are idle; the server tells it
                of those that are left to it.
            progress_ms: the window in which a large answer must be read as far as is due, and
                how long the rest of a request may take before the server waits for it.
            paths: of plain requests; all where None.
        """
        self.answer = answer
        self.gate = gate
        self.progress_ms = progress_ms
        self.paths = paths
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self) -> Front:
        """Return the protocol of a new connection."""
        return Front(self, self._server())

    def spawn(self, front: Front, request: Plain) -> None:
        """Have a request answered."""
        task = asyncio.get_running_loop().create_task(front.serve(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ended(self, timeout_s: float) -> None:
        """Return once no request is under way; those that take longer than that are given up."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Front(asyncio.Protocol):
    """One connection, until it is left to the server behind."""

    def __init__(self, fronts: Fronts, inner: asyncio.Protocol) -> None:
        self._fronts = fronts
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._held = b""
        self._wanted = 1
        self._patience: asyncio.TimerHandle | None = None
        self._busy = False
        self._unread = asyncio.Event()
        self._unread.set()
        self._source = ""
        self._left = False
        """Whether all that comes is the server's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection."""
        assert isinstance(transport, asyncio.Transport)
        if not self._fronts.gate.enter(transport):
            return
        self._transport = transport
        peername = transport.get_extra_info("peername")
        self._source = source_of(str(peername[0])) if peername else ""
        # An answer is written once the system has all of it, and not before.
        transport.set_write_buffer_limits(high=1, low=0)
        self._inner.connection_made(transport)
        if self._held:
            self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: what is under way goes on, and its answer is thrown away."""
        if self._transport is None:
            return
        self._stop_patience()
        self._fronts.gate.leave(self._transport)
        self._transport = None
        self._unread.set()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Write no more: the reader does not read."""
        self._unread.clear()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Go on writing."""
        self._unread.set()
        self._inner.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take what came; behind a handshake of TLS, even before the transport is told."""
        if self._left:
            self._inner.data_received(data)
            return
        self._held = self._held + data if self._held else data
        if self._transport is None:
            return
        if not self._busy:
            self._go_on()
        elif len(self._held) > PLAIN_BYTES_MAX:
            self._transport.pause_reading()

    def eof_received(self) -> bool | None:
        """Take the end of what comes."""
        return self._inner.eof_received() if self._left else None

    def _go_on(self) -> None:
        if len(self._held) < self._wanted:
            return
        found = plain.read(self._held, self._fronts.paths, self._source)
        if found is None:
            self._give_up()
        elif isinstance(found, int):
            self._wanted = found
            if self._patience is None:
                loop = asyncio.get_running_loop()
                self._patience = loop.call_later(self._fronts.progress_ms / 1000, self._give_up)
        else:
            self._stop_patience()
            self._held, self._wanted, self._busy = b"", 1, True
            assert self._transport is not None
            self._fronts.gate.busy(self._transport)
            self._fronts.spawn(self, found)

    async def serve(self, request: Plain) -> None:
        """Answer one request."""
        whole = False
        try:
            answer = await self._fronts.answer(request)
            try:
                await self._write(answer)
            finally:
                answer.sent()
            whole = True
        finally:
            self._busy = False
            if self._transport is not None and not self._transport.is_closing():
                if whole:
                    self._fronts.gate.quiet(self._transport)
                    self._transport.resume_reading()
                    self._go_on()
                else:
                    self._transport.abort()

    async def _write(self, answer: RawResponse) -> None:
        """Write an answer, as fast as it is read; a reader that has gone is no fault."""
        flow: Flow | None = None
        size = sum(len(buffer) for buffer in answer.body)
        head = plain.head_of(answer.status, answer.headers, size)
        for piece in plain.pieces([head, *answer.body]):
            if self._transport is None or self._transport.is_closing():
                return
            self._transport.write(piece)
            if not self._unread.is_set():
                loop = asyncio.get_running_loop()
                flow = flow or Flow(loop.time(), self._fronts.progress_ms, BODY_BYTES_A_SECOND_MIN)
                try:
                    async with flow.step():
                        await self._unread.wait()
                except FrameInvalid:
                    # The reader does not read. Nothing can be told to it any more.
                    if self._transport is not None:
                        self._transport.abort()
                    return
                flow.moved(loop.time(), len(piece))

    def _give_up(self) -> None:
        assert self._transport is not None
        self._stop_patience()
        held, self._held, self._left = self._held, b"", True
        self._inner.data_received(held)

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
