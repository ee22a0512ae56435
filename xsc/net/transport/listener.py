"""The HTTP server for requests of strangers: reads bodies in pieces, and discloses no details.

`xsc.net.transport.flow` limits the time of a body, `xsc.net.transport.gate` the number of
connections. A failed request is answered with a status without a body, and is not logged.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from http import HTTPStatus
from math import inf
from typing import Any

import aiohttp
from aiohttp import hdrs, web

from xsc.base.errors import FrameInvalid
from xsc.base.limits import BODY_BYTES_A_SECOND_MIN, KIB, PORT_RETRY_MS, PORT_WAIT_MS
from xsc.net.transport.connection import PIECE_BYTES
from xsc.net.transport.flow import Flow
from xsc.net.transport.gate import Gate
from xsc.net.transport.port import Take

LEFT_TO_THE_GATE_S = inf
"""When aiohttp may cut off an idle connection: it takes one for idle that the fast path serves."""
GATHERED_BYTES = 16 * KIB
"""Smaller pieces are joined with the next."""


async def listen(
    protocol: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    *,
    backlog: int,
    wait_ms: int = PORT_WAIT_MS,
) -> asyncio.Server:
    """Listen at an address; wait a moment for a port that is still in use.

    A process that was killed holds its ports until the system has taken it apart, and a peer's
    attempt to reach it may hold one for as long as it lasts.

    Raises:
        OSError: it cannot be listened on; EADDRINUSE where somebody else keeps the port.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_ms / 1000
    while True:
        try:
            return await loop.create_server(
                protocol, host, port, reuse_address=True, backlog=backlog
            )
        except OSError as fault:
            if fault.errno != errno.EADDRINUSE or loop.time() >= until:
                raise
        await asyncio.sleep(PORT_RETRY_MS / 1000)


def listen_hint(setting: str, fault: OSError) -> str:
    """Return what to do where an address cannot be listened on."""
    if fault.errno in (errno.EADDRINUSE, errno.EACCES):
        return f"set {setting} to a free port, or to port 0"
    return f"set {setting} to an address of this machine"


async def read_body(
    stream: aiohttp.StreamReader, size_bytes: int, window_ms: int, take: Take
) -> memoryview:
    """Return a body of announced length, of which no more is held than has come.

    Raises:
        FrameInvalid: it ended early or came too slowly.
    """
    pieces: list[bytes | bytearray] = []
    come = 0
    loop = asyncio.get_running_loop()
    flow = Flow(loop.time(), window_ms, BODY_BYTES_A_SECOND_MIN)
    while come < size_bytes:
        try:
            async with flow.step():
                chunk = await stream.readany()
        except (ConnectionError, aiohttp.ClientPayloadError):
            raise FrameInvalid("the body broke off") from None
        if not chunk or come + len(chunk) > size_bytes:
            raise FrameInvalid("the body has another length than announced")
        take(chunk)
        flow.moved(loop.time(), len(chunk))
        come += len(chunk)
        # Small ones are gathered: each of two bytes would take forty by itself.
        last = pieces[-1] if pieces else b""
        if len(chunk) >= GATHERED_BYTES:
            pieces.append(chunk)
        elif isinstance(last, bytearray) and len(last) < PIECE_BYTES:
            last += chunk
        else:
            pieces.append(bytearray(chunk))
    # Joined once: nothing else runs meanwhile that could do the same.
    return memoryview(b"".join(pieces))


class QuietHandler(web.RequestHandler):
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
    """An HTTP server whose connections say no more than they have to.

    Args:
        handler: of requests.
        gate: lets connections in, where nothing before this server does.
        cancel: whether a handler ends whose caller has gone away.
    """

    def __init__(
        self,
        handler: Any,  # noqa: ANN401 - aiohttp's own
        *,
        gate: Gate | None = None,
        cancel: bool = False,
        **options: Any,  # noqa: ANN401 - aiohttp's own
    ) -> None:
        super().__init__(handler, handler_cancellation=cancel, **options)
        self._options = options
        self._gate = gate

    def __call__(self) -> QuietHandler:
        """Return what serves a new connection."""
        return QuietHandler(self, loop=self._loop, **self._options)

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:  # noqa: ANN401
        """Begin to serve a connection, if it is let in."""
        super().connection_made(handler, transport)
        # Answers count until the system has them: what waits here would be nobody's.
        transport.set_write_buffer_limits(high=1, low=0)
        if self._gate is not None:
            self._gate.enter(transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:  # noqa: ANN401
        """Count it no more."""
        if self._gate is not None and handler.transport is not None:
            self._gate.leave(handler.transport)
        super().connection_lost(handler, exc)
