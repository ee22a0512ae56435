"""Connections whose small requests need no general HTTP parser; all others get one.

A `Front` stands before the protocol of an HTTP server. As long as a connection
brings plain requests (`xsc.net.plain`), each is answered here, one at a time.
With the first request that is not, or that does not come to its end in time, the
connection is the server's for good, with every byte of that request: no request is
between two parsers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeAlias

from xsc.base.limits import NO_PROGRESS_MS, PLAIN_BYTES_MAX
from xsc.net import plain
from xsc.net.plain import Plain
from xsc.net.port import Buffer

Answer: TypeAlias = Callable[[Plain], Awaitable[Sequence[Buffer]]]
"""Answers a request with the bytes of a response, in buffers; raises nothing."""


class Fronts:
    """Makes the fronts of one server, and ends what they still do."""

    def __init__(
        self,
        server: Callable[[], asyncio.Protocol],
        answer: Answer,
        *,
        idle_ms: int,
        progress_ms: int = NO_PROGRESS_MS,
        paths: Collection[str] | None = None,
        given_up: Callable[[asyncio.Protocol, asyncio.Transport], None] | None = None,
        taken: Callable[[asyncio.Protocol], None] | None = None,
    ) -> None:
        """Make the fronts of a server.

        Args:
            server: makes the protocol of a connection.
            answer: answers plain requests.
            idle_ms: how long a connection may bring no whole request.
            progress_ms: how long the reader of a large answer may read nothing, and the
                rest of a request may take before the server waits for it.
            paths: of plain requests; all where None.
            given_up: told of a connection that is the server's from now on.
            taken: told of a new one, which is not.
        """
        self.answer = answer
        self.idle_s = idle_ms / 1000
        self.progress_s = progress_ms / 1000
        self.paths = paths
        self._server = server
        self._given_up = given_up
        self._taken = taken
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self) -> Front:
        """Return the protocol of a new connection."""
        return Front(self, self._server())

    def taken(self, inner: asyncio.Protocol) -> None:
        """Take note of a new connection."""
        if self._taken is not None:
            self._taken(inner)

    def given_up(self, inner: asyncio.Protocol, transport: asyncio.Transport) -> None:
        """Take note of a connection that is left to the server."""
        transport.set_protocol(inner)
        if self._given_up is not None:
            self._given_up(inner, transport)

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
        self._timer: asyncio.TimerHandle | None = None
        self._quiet_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)
        self._fronts.taken(self._inner)
        loop = asyncio.get_running_loop()
        self._quiet_since = loop.time()
        self._timer = loop.call_later(self._fronts.idle_s, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: what is under way goes on, and its answer is thrown away."""
        self._stop_timer()
        self._stop_patience()
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
        """Take what came."""
        self._held = self._held + data if self._held else data
        if not self._busy:
            self._go_on()
        elif len(self._held) > PLAIN_BYTES_MAX and self._transport is not None:
            self._transport.pause_reading()

    def _go_on(self) -> None:
        if len(self._held) < self._wanted:
            return
        found = plain.read(self._held, self._fronts.paths)
        if found is None:
            self._give_up()
        elif isinstance(found, int):
            self._wanted = found
            if self._patience is None:
                loop = asyncio.get_running_loop()
                self._patience = loop.call_later(self._fronts.progress_s, self._give_up)
        else:
            self._stop_patience()
            self._held, self._wanted, self._busy = b"", 1, True
            self._fronts.spawn(self, found)

    async def serve(self, request: Plain) -> None:
        """Answer one request."""
        whole = False
        try:
            await self._write(await self._fronts.answer(request))
            whole = True
        finally:
            self._busy = False
            if self._transport is not None and not self._transport.is_closing():
                if whole:
                    self._quiet_since = asyncio.get_running_loop().time()
                    self._transport.resume_reading()
                    self._go_on()
                else:
                    self._transport.abort()

    async def _write(self, answer: Sequence[Buffer]) -> None:
        """Write an answer, as fast as it is read; a reader that has gone is no fault."""
        for piece in plain.pieces(answer):
            if not self._unread.is_set():
                try:
                    async with asyncio.timeout(self._fronts.progress_s):
                        await self._unread.wait()
                except TimeoutError:
                    # The reader does not read. Nothing can be told to it any more.
                    if self._transport is not None:
                        self._transport.abort()
            if self._transport is None or self._transport.is_closing():
                return
            self._transport.write(piece)

    def _give_up(self) -> None:
        assert self._transport is not None
        self._stop_timer()
        self._stop_patience()
        held, self._held = self._held, b""
        self._fronts.given_up(self._inner, self._transport)
        self._inner.data_received(held)

    def _check(self) -> None:
        """Cut the connection off where it has been quiet for too long; a half head is quiet."""
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        left = self._quiet_since + self._fronts.idle_s - loop.time()
        if self._busy or left > 0:
            left = self._fronts.idle_s if self._busy else left
            self._timer = loop.call_later(left, self._check)
        else:
            self._transport.abort()

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
