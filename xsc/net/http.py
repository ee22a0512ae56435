"""The transport port on HTTP/1.1: kept connections and aiohttp's server, TLS 1.3 off loopback.

Bodies are written buffer by buffer and read into one buffer of their announced
length; a body without a length is refused. Nothing is ever decompressed or
redirected. A connection that brings nothing for NO_PROGRESS_MS, a head that
takes longer, and a reader that does not read are cut off.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

from aiohttp import hdrs, web

from xsc.base.errors import ConfigInvalid, FrameInvalid, PeerSilent
from xsc.base.limits import (
    CONNECTIONS_MAX,
    NO_PROGRESS_MS,
    PEER_BODY_BYTES_MAX,
    PEER_CONNECT_TIMEOUT_MS,
    PEER_HEADER_BYTES_MAX,
)
from xsc.base.turns import Turns
from xsc.identity.keys import KeyPair
from xsc.net import answers, plain
from xsc.net.front import Fronts
from xsc.net.lines import Lines
from xsc.net.listener import Server, progress, read_body
from xsc.net.plain import PIECE_BYTES, Plain, pieces
from xsc.net.port import Arrival, Buffer, Handler, RawRequest, RawResponse
from xsc.net.tls import certificate_of, server_context
from xsc.net.turns import turn_to_send

KEEP_ALIVE_MS = 20_000
"""How long the server keeps an idle connection; clients give theirs up a little earlier."""
LINGER_MS = 2_000
"""How long the rest of a refused body is read, so that the refusal can be heard."""
STOP_MS = 2_000
"""How long handlers may take to end when the transport closes."""


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine by its form alone; names other than localhost are not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address; IPv6 keeps its brackets.

    Raises:
        ConfigInvalid: not of the form host:port.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigInvalid(f"'{address[:80]}' is no address", hint="for example 127.0.0.1:7412")
    return host, int(port)


class HttpTransport:
    """One end: a server on one address, and a pool of connections to others.

    Args:
        listen: host and port; port 0 takes a free one. Loopback is served without
            TLS, everything else with it.
        key: the identity that the certificate follows from.
        progress_ms: how long a body may bring nothing.
        idle_ms: how long a connection may bring no request.
        stop_ms: how long handlers may take to end when it closes.
    """

    def __init__(
        self,
        *,
        listen: str,
        key: KeyPair,
        progress_ms: int = NO_PROGRESS_MS,
        idle_ms: int = KEEP_ALIVE_MS,
        stop_ms: int = STOP_MS,
    ) -> None:
        self._host, self._port = split(listen)
        self._certificate = None if is_loopback(self._host) else certificate_of(key)
        self._progress_ms = progress_ms
        self._idle_ms = idle_ms
        self._stop_ms = stop_ms
        self._listening: asyncio.Server | None = None
        self._server: Server | None = None
        self._fronts: Fronts | None = None
        self._lines = Lines(idle_ms=KEEP_ALIVE_MS // 2, progress_ms=progress_ms)
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

    # Asking

    async def send(
        self, address: str, fingerprint: bytes | None, request: RawRequest, timeout_ms: int
    ) -> RawResponse:
        """Return the answer of the node at an address; errors as the port says."""
        place = split(address)
        if fingerprint is None and not is_loopback(place[0]):
            raise PeerSilent(f"{address} is not on this machine and has told no certificate")
        size = sum(len(buffer) for buffer in request.body)
        head = answers.request_head(request.method, request.path, address, request.headers, size)
        try:
            async with (
                asyncio.timeout(timeout_ms / 1000),
                turn_to_send(self._turns, address, size) as left,
            ):
                return await self._lines.ask(place, fingerprint, head, request.body, left)
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
        loop = asyncio.get_running_loop()
        self._handler = handler
        self._server = Server(
            self._serve_one,
            idle_ms=self._idle_ms,
            connections_max=CONNECTIONS_MAX,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=self._idle_ms / 1000,
            lingering_time=LINGER_MS / 1000,
            max_line_size=PEER_HEADER_BYTES_MAX // 2,
            max_field_size=PEER_HEADER_BYTES_MAX // 2,
            read_bufsize=PIECE_BYTES,
        )
        self._fronts = Fronts(
            self._server,
            self._answer_plain,
            idle_ms=self._idle_ms,
            progress_ms=self._progress_ms,
            taken=self._server.busy,
            given_up=self._server.quiet,
        )
        secure = None if self._certificate is None else server_context(self._certificate)
        try:
            self._listening = await loop.create_server(
                self._fronts,
                self._host.strip("[]"),
                self._port,
                ssl=secure,
                ssl_handshake_timeout=None if secure is None else PEER_CONNECT_TIMEOUT_MS / 1000,
            )
        except OSError as fault:
            raise ConfigInvalid(
                f"{self._host}:{self._port} cannot be listened on: {fault.strerror}",
                hint="another program may use that port",
            ) from None

    async def _answer_plain(self, request: Plain) -> Sequence[Buffer]:
        assert self._handler is not None

        async def read() -> memoryview:
            return memoryview(request.body)

        answer = await self._handler(
            Arrival("POST", request.path, request.headers, len(request.body), read)
        )
        size = sum(len(buffer) for buffer in answer.body)
        return [plain.head_of(answer.status, answer.headers, size), *answer.body]

    async def _serve_one(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._server is not None
        self._server.busy(request.protocol)
        try:
            return await self._respond(request)
        finally:
            self._server.quiet(request.protocol, request.transport)

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

            async def read() -> memoryview:
                return await read_body(request.content, size, self._progress_ms)

            answer = await self._handler(
                Arrival(request.method, request.raw_path, headers, size, read)
            )
        response = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
        response.headers[hdrs.SERVER] = "xsc"
        response.content_length = sum(len(buffer) for buffer in answer.body)
        await response.prepare(request)
        try:
            for piece in () if request.method == hdrs.METH_HEAD else pieces(answer.body):
                async with progress(self._progress_ms):
                    await response.write(piece)
            await response.write_eof()
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
        if self._fronts is not None:
            await self._fronts.ended(self._stop_ms / 1000)
            self._fronts = None
        if self._server is not None:
            self._server.stop_sweep()
            # Without this, connections that only wait for a request are waited for as well.
            self._server.pre_shutdown()
            await self._server.shutdown(self._stop_ms / 1000)
            self._server = None
        await self._lines.close()


def _own_host() -> str:
    """Return the address of the interface with the default route; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        host: str = probe.getsockname()[0]
        return host
