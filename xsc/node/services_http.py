"""Where strangers reach services: `/fn/OWNER/NAME…` on a listener of its own.

It knows no token and no other path, and is off until `services_listen` says
where. A body is read whole before the request takes its turn, and an answer is
written whole after the program has ended, so that a slow caller holds a
connection and its own bytes and never a worker; the bytes of all of them are
bounded together. Slow heads, bodies and readers are cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import unquote

import aiohttp
from aiohttp import hdrs, web

from xsc.base.errors import ConfigInvalid, FrameInvalid, PeerUnknown
from xsc.base.limits import (
    BODY_BYTES_A_SECOND_MIN,
    KIB,
    NO_PROGRESS_MS,
    SERVICE_ANSWER_BYTES_A_SECOND_MIN,
    SERVICE_BODIES_BYTES_MAX,
    SERVICE_CONNECTIONS_MAX,
    SERVICE_HEADER_BYTES_MAX,
    SERVICE_HEADERS_MAX,
    STDIN_BYTES_MAX,
)
from xsc.compute.services import Served
from xsc.compute.services_rules import Answer, fault_answer
from xsc.compute.wagi import METHODS, Request
from xsc.net.listener import Server, progress
from xsc.node.build import Node

PIECE_BYTES = 64 * KIB
"""Read and written at once."""
STOP_MS = 10_000
"""How long requests that run may take to end when the node stops."""
LINGER_MS = 2_000
"""How long the rest of a refused body is read, so that the refusal can be heard."""
_BUSY = "the bodies of all requests to this node take up their room already"


class Room:
    """The bytes of bodies that are in memory at once.

    Args:
        size_bytes: how many there may be.
    """

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes

    def take(self, size_bytes: int) -> bool:
        """Take room, if there is enough."""
        if size_bytes > self._left:
            return False
        self._left -= size_bytes
        return True

    def give(self, size_bytes: int) -> None:
        """Give it back."""
        self._left += size_bytes


class _Refused(Exception):
    """The request is answered before it runs."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


class ServiceListener:
    """Serves the services that a node holds.

    Args:
        node: whose they are.
        progress_ms: how long a body may bring nothing, and a head take in all.
        bodies_bytes: bound of all bodies together.
        connections_max: bound of connections.
    """

    def __init__(
        self,
        node: Node,
        *,
        progress_ms: int = NO_PROGRESS_MS,
        bodies_bytes: int = SERVICE_BODIES_BYTES_MAX,
        connections_max: int = SERVICE_CONNECTIONS_MAX,
    ) -> None:
        self._node = node
        self._progress_ms = progress_ms
        self._connections_max = connections_max
        self._room = Room(bodies_bytes)
        self._server: Server | None = None
        self._listening: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises:
            ConfigInvalid: it is not to be had.
        """
        self._server = Server(
            self._serve,
            idle_ms=self._progress_ms,
            connections_max=self._connections_max,
            access_log=None,
            auto_decompress=False,
            cancel=True,
            keepalive_timeout=self._progress_ms / 1000,
            lingering_time=LINGER_MS / 1000,
            max_line_size=SERVICE_HEADER_BYTES_MAX,
            max_field_size=SERVICE_HEADER_BYTES_MAX,
            max_headers=SERVICE_HEADERS_MAX,
            read_bufsize=PIECE_BYTES,
        )
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                self._server, host, port
            )
        except OSError as fault:
            raise ConfigInvalid(
                f"services cannot listen on {host}:{port}: {fault.strerror}",
                hint="set services_listen to a free port, or to port 0",
            ) from None
        found: int = self._listening.sockets[0].getsockname()[1]
        return found

    async def stop(self) -> None:
        """Take no more requests, and let those that run end."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._server is not None:
            self._server.stop_sweep()
            self._server.pre_shutdown()
            await self._server.shutdown(STOP_MS / 1000)
            self._server = None

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._server is not None
        server = self._server
        server.busy(request.protocol)
        try:
            return await self._respond(request)
        finally:
            server.quiet(request.protocol, request.transport)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        held = 0
        try:
            try:
                owner, name, asked = self._asked(request)
                with self._holding() as hold:
                    body = await self._body(request, hold)
                    held, hold.size_bytes = hold.size_bytes, 0
            except _Refused as refused:
                return await self._write(request, Served(refused.answer), closing=True)
            except FrameInvalid as fault:
                answer = fault_answer(408, f"the request was given up: {fault.message}")
                return await self._write(request, Served(answer), closing=True)
            taken, held = held, 0
            served = await self._node.services.answer(
                owner, name, replace(asked, body=body), done=lambda: self._room.give(taken)
            )
            size = len(served.answer.response.body)
            if not self._room.take(size):
                served = Served(fault_answer(503, _BUSY, retry_after_s=1), served.request_id)
            else:
                held = size
            return await self._write(request, served)
        finally:
            self._room.give(held)

    def _asked(self, request: web.BaseRequest) -> tuple[bytes, str, Request]:
        """Return owner, name and request.

        Raises:
            _Refused: it is for no service that is held here.
        """
        size = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
        if size > SERVICE_HEADER_BYTES_MAX:
            raise _Refused(
                fault_answer(431, f"the head is bounded to {SERVICE_HEADER_BYTES_MAX} bytes")
            )
        raw, _, query = request.raw_path.partition("?")
        parts = raw.split("/", 4)
        if len(parts) < 4 or parts[:2] != ["", "fn"] or not parts[2] or not parts[3]:
            raise _Refused(fault_answer(404, "a service is at /fn/OWNER/NAME"))
        try:
            owner = self._node.find(unquote(parts[2]))
        except PeerUnknown:
            owner = b""
        name = parts[3]
        if not self._node.services.holds(owner, name):
            raise _Refused(fault_answer(404, "there is no such service here"))
        if request.method not in METHODS:
            answer = fault_answer(405, f"a service takes {', '.join(METHODS)}")
            raise _Refused(answer)
        raw_path = raw[len("/".join(parts[:4])) :]
        peer = request.transport.get_extra_info("peername") if request.transport else None
        return (
            owner,
            name,
            Request(
                method=request.method,
                route="/".join(parts[:4]),
                raw_path=raw_path,
                path=unquote(raw_path, errors="replace"),
                query=query,
                headers=list(request.headers.items()),
                remote=str(peer[0]) if peer else "",
                version=f"HTTP/{request.version.major}.{request.version.minor}",
            ),
        )

    @contextmanager
    def _holding(self) -> Iterator[_Hold]:
        """Give back what was taken where the body does not come."""
        hold = _Hold(self._room)
        try:
            yield hold
        finally:
            self._room.give(hold.size_bytes)

    async def _body(self, request: web.BaseRequest, hold: _Hold) -> bytes:
        """Return the body, whole, whether its length was announced or not.

        Raises:
            _Refused: it is too large, or there is no room for it now.
            FrameInvalid: it comes too slowly, or breaks off.
        """
        size = request.content_length or 0
        if size > STDIN_BYTES_MAX:
            raise _Refused(fault_answer(413, f"a body is bounded to {STDIN_BYTES_MAX} bytes"))
        hold.take(size)
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = bytearray()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                async with progress(self._progress_ms):
                    piece = await request.content.readany()
            except (ConnectionError, aiohttp.ClientPayloadError):
                raise FrameInvalid("the body broke off") from None
            if not piece:
                return bytes(body)
            body += piece
            if len(body) > STDIN_BYTES_MAX:
                raise _Refused(fault_answer(413, f"a body is bounded to {STDIN_BYTES_MAX} bytes"))
            if len(body) > hold.size_bytes:
                hold.take(len(body) - hold.size_bytes)
            allowed_s = self._progress_ms / 1000 + len(body) / BODY_BYTES_A_SECOND_MIN
            if loop.time() - began > allowed_s:
                raise FrameInvalid("the body comes too slowly")

    async def _write(
        self, request: web.BaseRequest, served: Served, *, closing: bool = False
    ) -> web.StreamResponse:
        told = served.answer.response
        response = web.StreamResponse(status=told.status)
        for name, value in told.headers:
            response.headers.add(name, value)
        response.headers[hdrs.SERVER] = "xsc"
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        if served.request_id:
            response.headers["XSC-Request-Id"] = served.request_id
        if told.status == 405:
            response.headers.setdefault(hdrs.ALLOW, ", ".join(METHODS))
        if closing:
            response.force_close()
        if told.status not in (204, 304):
            response.content_length = len(told.body)
        await response.prepare(request)
        view = memoryview(told.body if request.method != hdrs.METH_HEAD else b"")
        allowed_s = self._progress_ms / 1000 + len(view) / SERVICE_ANSWER_BYTES_A_SECOND_MIN
        try:
            async with progress(int(allowed_s * 1000)):
                for start in range(0, len(view), PIECE_BYTES):
                    async with progress(self._progress_ms):
                        await response.write(view[start : start + PIECE_BYTES])
                await response.write_eof()
        except FrameInvalid:
            # The reader does not read. Nothing can be told to it any more.
            if request.transport is not None:
                request.transport.abort()
        return response


class _Hold:
    """The room that one body has taken."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Take more of it.

        Raises:
            _Refused: there is not so much.
        """
        if not self._room.take(size_bytes):
            raise _Refused(fault_answer(503, _BUSY, retry_after_s=1))
        self.size_bytes += size_bytes
