"""An HTTP server that strangers may reach: what is slow, idle or too much is cut off.

A connection that brings no whole head for `idle_ms` is cut off, also where the
head dribbles in; a body that brings nothing, or less than
BODY_BYTES_A_SECOND_MIN, is given up; more connections than a bound are dropped.
What goes wrong is answered with a status alone, and logged by nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp import hdrs, web

from xsc.base.errors import FrameInvalid
from xsc.base.limits import BODY_BYTES_A_SECOND_MIN


@asynccontextmanager
async def progress(limit_ms: int) -> AsyncIterator[None]:
    """Bound the time in which a connection makes no progress.

    Raises:
        FrameInvalid: it made none.
    """
    try:
        async with asyncio.timeout(limit_ms / 1000):
            yield
    except TimeoutError:
        raise FrameInvalid(f"the body brought nothing for {limit_ms} ms") from None


async def read_body(stream: aiohttp.StreamReader, size_bytes: int, progress_ms: int) -> memoryview:
    """Return a body of announced length.

    Raises:
        FrameInvalid: it ended early or came too slowly.
    """
    body, filled = bytearray(size_bytes), 0
    loop = asyncio.get_running_loop()
    deadline = loop.time() + progress_ms / 1000 + size_bytes / BODY_BYTES_A_SECOND_MIN
    while filled < size_bytes:
        try:
            async with progress(progress_ms):
                chunk = await stream.readany()
        except (ConnectionError, aiohttp.ClientPayloadError):
            raise FrameInvalid("the body broke off") from None
        if not chunk or filled + len(chunk) > size_bytes:
            raise FrameInvalid("the body has another length than announced")
        if loop.time() > deadline:
            raise FrameInvalid("the body comes too slowly")
        body[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return memoryview(body).toreadonly()


class Connection(web.RequestHandler):
    """Says a status to what is not HTTP, and nothing to those who have gone."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be handled.

        aiohttp would send back what it could not read, with its version, and write a trace
        to the log for it: anybody could fill the disk.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        response = web.Response(status=status, headers={hdrs.SERVER: "xsc"})
        response.force_close()
        return response


class Server(web.Server):
    """Counts connections, and cuts off those that are idle for too long."""

    def __init__(
        self,
        handler: Any,  # noqa: ANN401 - aiohttp's own
        *,
        idle_ms: int,
        connections_max: int,
        cancel: bool = False,
        **options: Any,  # noqa: ANN401 - aiohttp's own
    ) -> None:
        """Make one; `cancel` ends a handler whose caller has gone away."""
        super().__init__(handler, handler_cancellation=cancel, **options)
        self._options = options
        self._idle_s = idle_ms / 1000
        self._connections_max = connections_max
        self._quiet_since: dict[object, tuple[float, asyncio.Transport]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> Connection:
        """Return what serves a new connection."""
        return Connection(self, loop=self._loop, **self._options)

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:  # noqa: ANN401
        """Begin to count a connection, or drop it where there are too many."""
        super().connection_made(handler, transport)
        if len(self._connections) > self._connections_max:
            transport.abort()
            return
        self.quiet(handler, transport)
        if self._timer is None:
            self._sweep()

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:  # noqa: ANN401
        """Count it no more."""
        self._quiet_since.pop(handler, None)
        super().connection_lost(handler, exc)

    def quiet(self, handler: object, transport: asyncio.Transport | None) -> None:
        """Note that a connection waits for a request from now on."""
        if transport is not None and not transport.is_closing():
            self._quiet_since[handler] = (self._loop.time(), transport)

    def busy(self, handler: object) -> None:
        """Note that a connection has brought a whole head."""
        self._quiet_since.pop(handler, None)

    def _sweep(self) -> None:
        """Cut off what has been quiet for too long: a head that dribbles counts as quiet."""
        now = self._loop.time()
        for handler, (since, transport) in list(self._quiet_since.items()):
            if now - since >= self._idle_s:
                del self._quiet_since[handler]
                transport.abort()
        self._timer = self._loop.call_later(self._idle_s / 4, self._sweep)

    def stop_sweep(self) -> None:
        """End the timer."""
        if self._timer is not None:
            self._timer.cancel()
