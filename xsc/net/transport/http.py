"""The transport port on HTTP/1.1: kept connections and aiohttp's server, TLS 1.3 off loopback.

Bodies are written buffer by buffer and held as they come; a body without a length is
refused. Nothing is ever decompressed or redirected. Transfers go on as `xsc.net.transport.flow`
says, and connections are counted as `xsc.net.transport.gate` does.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aiohttp import hdrs, web

from xsc.base.errors import ConfigInvalid, FrameInvalid, PeerSilent
from xsc.base.limits import (
    BODY_BYTES_A_SECOND_MIN,
    CONNECTIONS_AN_ADDRESS_MAX,
    CONNECTIONS_MAX,
    CONNECTIONS_OUT_MAX,
    NO_PROGRESS_MS,
    PEER_BODY_BYTES_MAX,
    PEER_HEADER_BYTES_MAX,
)
from xsc.base.turns import Turns
from xsc.identity.keys import KeyPair
from xsc.net.transport.addresses import is_loopback, source_of, split
from xsc.net.transport.connection import PIECE_BYTES, pieces
from xsc.net.transport.connection_pool import ConnectionPool
from xsc.net.transport.fast_path import FastPath
from xsc.net.transport.flow import Flow
from xsc.net.transport.gate import Gate
from xsc.net.transport.listener import LEFT_TO_THE_GATE_S, Server, listen, listen_hint, read_body
from xsc.net.transport.parser import SmallRequest, request_head
from xsc.net.transport.port import Arrival, Handler, RawRequest, RawResponse, Take
from xsc.net.transport.tls import Door, certificate_of, server_context
from xsc.net.transport.turns import turn_to_send

KEEP_ALIVE_MS = 20_000
"""How long the server keeps an idle connection; clients give theirs up a little earlier."""
LINGER_MS = 2_000
"""How long the rest of a refused body is read, so that the refusal can be heard."""
STOP_MS = 2_000
"""How long handlers may take to end when the transport closes."""


class HttpTransport:
    """One end: a server on one address, and a pool of connections to others.

    Args:
        listen: host and port; port 0 takes a free one. Loopback is served without
            TLS, everything else with it.
        key: the identity that the certificate follows from.
        progress_ms: the window in which a body must bring what is due.
        idle_ms: how long a connection may bring no request.
        stop_ms: how long handlers may take to end when it closes.
        connections_max: how many it has at most, of those that it serves and of its own.
    """

    def __init__(
        self,
        *,
        listen: str,
        key: KeyPair,
        progress_ms: int = NO_PROGRESS_MS,
        idle_ms: int = KEEP_ALIVE_MS,
        stop_ms: int = STOP_MS,
        connections_max: int = max(CONNECTIONS_MAX, CONNECTIONS_OUT_MAX),
    ) -> None:
        self._where = listen
        self._host, self._port = split(listen)
        self._certificate = None if is_loopback(self._host) else certificate_of(key)
        self._progress_ms = progress_ms
        most = min(CONNECTIONS_MAX, connections_max)
        self._gate = Gate(most=most, share=min(CONNECTIONS_AN_ADDRESS_MAX, most), idle_ms=idle_ms)
        self._stop_ms = stop_ms
        self._listening: asyncio.Server | None = None
        self._server: Server | None = None
        self._fast_path: FastPath | None = None
        self._door: Door | None = None
        self._pool = ConnectionPool(
            idle_ms=KEEP_ALIVE_MS // 2,
            progress_ms=progress_ms,
            most=min(CONNECTIONS_OUT_MAX, connections_max),
        )
        self._turns: Turns[str] = Turns()
        self._handler: Handler | None = None

    @property
    def fingerprint(self) -> bytes | None:
        """SHA-256 of this end's certificate; None on loopback."""
        return None if self._certificate is None else self._certificate.fingerprint

    def addresses(self) -> tuple[str, ...]:
        """Return where this end listens; for all interfaces, the one that has the default route."""
        if self._listening is None:
            return ()
        port = self._listening.sockets[0].getsockname()[1]
        if self._host in ("0.0.0.0", "[::]"):  # noqa: S104 (compared, not bound)
            return (f"{_own_host()}:{port}",)
        return (f"{self._host}:{port}",)

    def _is_local(self) -> bool:
        """Say whether others reach this end on loopback alone, so that they may be there too."""
        return all(is_loopback(split(address)[0]) for address in self.addresses() or (self._where,))

    # Asking

    async def send(
        self, address: str, fingerprint: bytes | None, request: RawRequest, timeout_ms: int
    ) -> RawResponse:
        """Return the answer of the node at an address; errors as the port says."""
        place = split(address)
        if fingerprint is None and not is_loopback(place[0]):
            raise PeerSilent(f"{address} is not on this machine and has told no certificate")
        size = sum(len(buffer) for buffer in request.body)
        head = request_head(request.method, request.path, address, request.headers, size)
        try:
            async with (
                asyncio.timeout(timeout_ms / 1000),
                turn_to_send(self._turns, address, size) as left,
            ):
                return await self._pool.ask(
                    place, fingerprint, head, request.body, left, local=self._is_local
                )
        except TimeoutError:
            raise PeerSilent(f"no answer from {address} within {timeout_ms} ms") from None
        except FrameInvalid as fault:
            raise PeerSilent(f"{address} does not answer as a peer: {fault.message}") from None

    # Answering

    async def serve(self, handler: Handler) -> None:
        """Begin to answer requests.

        Raises:
            ConfigInvalid: the address cannot be listened on.
        """
        self._handler = handler
        self._server = Server(
            self._serve_one,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=LEFT_TO_THE_GATE_S,
            lingering_time=LINGER_MS / 1000,
            max_line_size=PEER_HEADER_BYTES_MAX // 2,
            max_field_size=PEER_HEADER_BYTES_MAX // 2,
            read_bufsize=PIECE_BYTES,
        )
        self._fast_path = FastPath(
            self._server,
            self._answer_small,
            self._gate,
            progress_ms=self._progress_ms,
        )
        made: Callable[[], asyncio.Protocol] = self._fast_path
        if self._certificate is not None:
            self._door = made = Door(server_context(self._certificate), self._fast_path, self._gate)
        try:
            self._listening = await listen(
                made, self._host.strip("[]"), self._port, backlog=self._gate.backlog
            )
        except OSError as fault:
            raise ConfigInvalid(
                f"{self._host}:{self._port} cannot be listened on: {fault.strerror}",
                hint=listen_hint("peer_listen", fault),
            ) from None

    async def _answer_small(self, request: SmallRequest) -> RawResponse:
        assert self._handler is not None

        async def read(take: Take) -> memoryview:
            take(request.body)
            return memoryview(request.body)

        return await self._handler(
            Arrival("POST", request.path, request.headers, len(request.body), read, request.source)
        )

    async def _serve_one(self, request: web.BaseRequest) -> web.StreamResponse:
        with self._gate.serving(request.transport):
            return await self._respond(request)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._handler is not None
        size = request.content_length or 0
        if hdrs.TRANSFER_ENCODING in request.headers:
            answer = RawResponse(411)
        elif size > PEER_BODY_BYTES_MAX:
            answer = RawResponse(413)
        else:
            headers: dict[str, str] = {}
            for name, value in request.headers.items():
                # Fields given twice are joined as RFC 9110 says, and so fail where one is due.
                low = name.lower()
                headers[low] = f"{headers[low]}, {value}" if low in headers else value

            async def read(take: Take) -> memoryview:
                return await read_body(request.content, size, self._progress_ms, take)

            source = source_of(request.remote or "")
            answer = await self._handler(
                Arrival(request.method, request.raw_path, headers, size, read, source)
            )
        try:
            return await self._write(request, answer)
        finally:
            answer.sent()

    async def _write(self, request: web.BaseRequest, answer: RawResponse) -> web.StreamResponse:
        """Write an answer, until the system has all of it."""
        response = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
        response.headers[hdrs.SERVER] = "xsc"
        response.content_length = sum(len(buffer) for buffer in answer.body)
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        flow = Flow(loop.time(), self._progress_ms, BODY_BYTES_A_SECOND_MIN)
        try:
            for piece in () if request.method == hdrs.METH_HEAD else pieces(answer.body):
                async with flow.step():
                    await response.write(piece)
                    await request.writer.drain()
                flow.moved(loop.time(), len(piece))
            async with flow.step():
                await response.write_eof()
                await request.writer.drain()
        except FrameInvalid:
            # The reader does not read. Nothing can be told to it any more.
            if request.transport is not None:
                request.transport.abort()
        return response

    async def close(self) -> None:
        """Stop listening, let what runs end for a while, and drop all connections."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._fast_path is not None:
            await self._fast_path.ended(self._stop_ms / 1000)
            self._fast_path = None
        if self._door is not None:
            await self._door.close()
            self._door = None
        self._gate.close()
        if self._server is not None:
            # Without this, connections that only wait for a request are waited for as well.
            self._server.pre_shutdown()
            await self._server.shutdown(self._stop_ms / 1000)
            self._server = None
        await self._pool.close()


def _own_host() -> str:
    """Return the address of the interface with the default route; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        host: str = probe.getsockname()[0]
        return host
