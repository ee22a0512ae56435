"""The transport port on HTTP/1.1: aiohttp's server and client, with TLS 1.3 off loopback.

Bodies are written buffer by buffer and held as they come; one without a length is refused.
Nothing is decompressed or redirected, and there are no cookies. `xsc.net.transport.bounds` has
what bounds all of it; `Server` is also that of services and of the API.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import lru_cache, partial
from http import HTTPStatus
from math import inf
from typing import Any

import aiohttp
from aiohttp import hdrs, web
from aiohttp.client_proto import ResponseHandler

from xsc.base import limits, room, turns
from xsc.base.errors import ConfigInvalid, FrameInvalid, PeerSilent, RateLimited, TooLarge
from xsc.base.limits import PEER_BODY_BYTES_MAX, PEER_REQUESTS_IN_FLIGHT_MAX, SMALL_BODIES_BYTES
from xsc.identity.keys import KeyPair
from xsc.net.transport import bounds, tls
from xsc.net.transport.addresses import is_loopback, may_be_peer, source_of, split
from xsc.net.transport.port import Arrival, Buffer, Dropped, Handler, RawRequest, RawResponse, Take

PORT_WAIT_MS = 5_000
"""How long a port that is still in use is waited for."""
PORT_RETRY_MS = 50
REPLIES_BYTES_MAX = 12 * PEER_BODY_BYTES_MAX + SMALL_BODIES_BYTES
"""Answers of all peers that this node is receiving."""
REPLIES_A_PEER_BYTES_MAX = 4 * PEER_BODY_BYTES_MAX
"""The same, of one peer."""
CONNECTIONS_MAX = 512
"""Connections that a node serves its peers on at once."""
CONNECTIONS_AN_ADDRESS_MAX = 256
"""The same, from one source: an IPv4 address, or the first 64 bits of one of IPv6."""
CONNECTIONS_OUT_MAX = 512
"""Connections that a node has to its peers at once."""
CONNECTIONS_TO_A_PEER_MAX = PEER_REQUESTS_IN_FLIGHT_MAX
"""One request each: a long job must not keep a probe waiting."""
assert REPLIES_BYTES_MAX >= 3 * REPLIES_A_PEER_BYTES_MAX + SMALL_BODIES_BYTES

NO_PLACE = "it is no place for a peer: on this machine, or nobody's own"
KEEP_ALIVE_MS = 20_000
"""How long the server keeps an idle connection; clients give theirs up a little earlier."""
LINGER_MS = 2_000
"""How long the rest of a refused body is read, so that the refusal can be heard."""
STOP_MS = 2_000
"""How long handlers may take to end when the transport closes."""


class _Connection(web.RequestHandler):
    """Says a status to what is not HTTP, and nothing to those who have gone."""

    async def start(self) -> None:
        """Answer requests, if it was not cut off before this began."""
        if self._manager is not None:
            await super().start()

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

    def connection_lost(self, exc: BaseException | None) -> None:
        """End: a broken TLS record and a silent network do it as the caller does."""
        if exc is not None and not isinstance(exc, ConnectionError):
            exc = ConnectionResetError(str(exc))
        super().connection_lost(exc)


class _Answers(ResponseHandler):
    """Takes one head for each request."""

    def set_response_params(self, **options: Any) -> None:  # noqa: ANN401 - aiohttp's own
        """Begin to wait for an answer."""
        super().set_response_params(**options)
        self._parser = bounds.Held(self._parser, heads=1)  # type: ignore[assignment]


class Connector(aiohttp.TCPConnector):
    """Keeps connections to peers: so many, so many to each, and none where no peer can be.

    Args:
        most: how many there may be; idle ones go first.
        idle_ms: how long one may be idle and still be used.
        local: says whether peers may be on loopback.
    """

    def __init__(self, most: int, idle_ms: int, local: Callable[[], bool]) -> None:
        def place(info: Any) -> socket.socket:  # noqa: ANN401 (of getaddrinfo)
            if not may_be_peer(str(info[4][0]), local=local()):
                raise OSError(NO_PLACE)
            return socket.socket(*info[:3])

        super().__init__(
            limit=most,
            limit_per_host=CONNECTIONS_TO_A_PEER_MAX,
            keepalive_timeout=idle_ms / 1000,
            resolver=aiohttp.ThreadedResolver(),
            use_dns_cache=False,
            socket_factory=place,
        )
        self._factory = partial(_Answers, loop=self._loop)  # type: ignore[assignment]

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        idle = sorted(
            ((since, key, kept) for key, all_ in self._conns.items() for kept, since in all_),
            key=lambda found: found[0],
        )
        for since, key, kept in idle[: max(0, len(self._acquired) + len(idle) - self.limit)]:
            self._conns[key].remove((kept, since))
            kept.abort()
        return await super()._create_connection(*args, **kwargs)

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:  # noqa: ANN401
        if should_close or protocol.should_close:
            if protocol.exception() is not None:
                # The other end dropped it: those that are kept are as old, or older.
                for kept, _ in self._conns.pop(key, ()):
                    kept.abort()
            # To close it would wait for a peer that does not read what was written.
            protocol.abort()
        super()._release(key, protocol, should_close=should_close)


class Server(web.Server):
    """An HTTP server whose connections a gate counts, and which says no more than it has to.

    Args:
        handler: of requests.
        gate: lets connections in.
        cancel: whether a handler ends whose caller has gone away.
        open_paths: requests for them keep no connection from being cut off.
        options: of aiohttp, beside those that are the same for all.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        gate: bounds.Gate,
        *,
        cancel: bool = False,
        open_paths: Collection[str] = (),
        **options: Any,  # noqa: ANN401 - aiohttp's own
    ) -> None:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            if request.transport is None:
                raise ConnectionResetError("it is gone already")
            self._answering += 1
            self._none.clear()
            try:
                kept = request.rel_url.raw_path not in open_paths
                with gate.serving(request.transport, kept=kept):
                    return await handler(request)
            finally:
                self._answering -= 1
                if not self._answering:
                    self._none.set()

        super().__init__(answer, handler_cancellation=cancel)
        self._answering = 0
        self._none = asyncio.Event()
        """Set while no request is answered."""
        self._none.set()
        # The gate ends idle connections.
        self._options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": inf,
            "lingering_time": LINGER_MS / 1000,
            "max_headers": bounds.HEAD_FIELDS_MAX,
            **options,
        }
        self._gate = gate
        self._listening: asyncio.Server | None = None

    def __call__(self) -> _Connection:
        """Return what serves a new connection."""
        made = _Connection(self, loop=self._loop, **self._options)
        made._parser = bounds.Held(made._parser)  # type: ignore[assignment]  # noqa: SLF001
        return made

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:  # noqa: ANN401
        """Begin to serve a connection, if it is let in."""
        super().connection_made(handler, transport)
        # Answers count until the system has them: what waits here would be nobody's.
        transport.set_write_buffer_limits(high=1, low=0)
        self._gate.enter(transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:  # noqa: ANN401
        """Count it no more."""
        if handler.transport is not None:
            self._gate.leave(handler.transport)
        super().connection_lost(handler, exc)

    async def start(
        self, host: str, port: int, setting: str, door: Callable[[], asyncio.Protocol] | None = None
    ) -> int:
        """Listen, and return the port; wait a moment for one that is still in use.

        A process that was killed holds its ports until the system has taken it apart, and a
        peer's attempt to reach it may hold one for as long as it lasts.

        Args:
            host, port: where.
            setting: that says so.
            door: before this server.

        Raises:
            ConfigInvalid: it cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + PORT_WAIT_MS / 1000
        while True:
            try:
                self._listening = await loop.create_server(
                    door or self, host.strip("[]"), port, backlog=self._gate.backlog
                )
            except OSError as fault:
                taken = fault.errno in (errno.EADDRINUSE, errno.EACCES)
                if fault.errno != errno.EADDRINUSE or loop.time() >= until:
                    where = "a free port, or to port 0" if taken else "an address of this machine"
                    raise ConfigInvalid(
                        f"{host}:{port} cannot be listened on: {fault.strerror}",
                        hint=f"set {setting} to {where}",
                    ) from None
                await asyncio.sleep(PORT_RETRY_MS / 1000)
            else:
                found: int = self._listening.sockets[0].getsockname()[1]
                return found

    def end(self) -> None:
        """Take no new connection."""
        if self._listening is not None:
            self._listening.close()

    async def answered(self, timeout_ms: int) -> None:
        """Return once no request is being answered, or when the time is up.

        To stop throws away what bodies still bring.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), timeout_ms / 1000)

    async def stop(self, timeout_ms: int) -> None:
        """Take nothing new, let what runs end for a while, and drop all connections."""
        self.end()
        self._gate.close()
        # Without this, connections that only wait for a request are waited for as well.
        self.pre_shutdown()
        await self.shutdown(timeout_ms / 1000)


async def say_continue(request: web.BaseRequest) -> None:
    """Tell a caller that waits for it that its body is wanted."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


@lru_cache(maxsize=1024)
def _pinned(fingerprint: bytes) -> aiohttp.Fingerprint:
    """Return always the same object: kept connections are found by it."""
    return aiohttp.Fingerprint(fingerprint)


class HttpTransport:
    """One end: a server on one address, and kept connections to others.

    Args:
        listen: host and port; port 0 takes a free one. Loopback is served without
            TLS, everything else with it.
        key: the identity that the certificate follows from.
        progress_ms: the window in which a body must bring what is due.
        idle_ms: how long a connection may bring no request.
        stop_ms: how long handlers may take to end when it closes.
        connections_max: how many it has at most, of those that it serves and of its own.
        replies: room for answers that are being received.
    """

    def __init__(
        self,
        *,
        listen: str,
        key: KeyPair,
        progress_ms: int = limits.NO_PROGRESS_MS,
        idle_ms: int = KEEP_ALIVE_MS,
        stop_ms: int = STOP_MS,
        connections_max: int = max(CONNECTIONS_MAX, CONNECTIONS_OUT_MAX),
        replies: room.Room | None = None,
    ) -> None:
        self._host, self._port = split(listen)
        self._certificate = None if is_loopback(self._host) else tls.certificate_of(key)
        self._progress_ms = progress_ms
        most = min(CONNECTIONS_MAX, connections_max)
        self._gate = bounds.Gate(
            most=most, share=min(CONNECTIONS_AN_ADDRESS_MAX, most), idle_ms=idle_ms
        )
        self._stop_ms = stop_ms
        self._server: Server | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        self._bound_port: int | None = None
        self._out_max = min(CONNECTIONS_OUT_MAX, connections_max)
        self._session: aiohttp.ClientSession | None = None
        self._turns: turns.Turns[str] = turns.Turns()
        self._replies = replies or room.Room(
            REPLIES_BYTES_MAX, REPLIES_A_PEER_BYTES_MAX, small=limits.SMALL_BODIES_BYTES
        )
        self._handler: Handler | None = None

    @property
    def fingerprint(self) -> bytes | None:
        """SHA-256 of this end's certificate; None on loopback."""
        return None if self._certificate is None else self._certificate.fingerprint

    def addresses(self) -> tuple[str, ...]:
        """Return where this end listens; for all interfaces, the one that has the default route."""
        if self._bound_port is None:
            return ()
        if self._host in ("0.0.0.0", "[::]"):  # noqa: S104 (compared, not bound)
            return (f"{_own_host()}:{self._bound_port}",)
        return (f"{self._host}:{self._bound_port}",)

    def _is_local(self) -> bool:
        """Say whether others reach this end on loopback alone, so that they may be there too."""
        hosts = [split(address)[0] for address in self.addresses()]
        return all(is_loopback(host) for host in hosts or [self._host])

    # Asking

    async def send(
        self, address: str, fingerprint: bytes | None, request: RawRequest, timeout_ms: int
    ) -> RawResponse:
        """Return the answer of the node at an address; errors as the port says."""
        if fingerprint is None and not is_loopback(split(address)[0]):
            raise PeerSilent(f"{address} is not on this machine and has told no certificate")
        size = sum(len(buffer) for buffer in request.body)
        try:
            async with (
                asyncio.timeout(timeout_ms / 1000),
                bounds.turn_to_send(self._turns, address, size) as left,
            ):
                body = bounds.Body(request.body, left=left)
                return await self._ask(address, fingerprint, request, body)
        except UnicodeError:
            raise PeerSilent(f"{address} is no address: no name is like that") from None
        except aiohttp.ServerFingerprintMismatch:
            raise PeerSilent(
                f"{address} shows another certificate than the peer's",
                hint="it may have moved, or somebody stands between",
            ) from None
        except aiohttp.ClientConnectorError as fault:
            if str(fault.os_error) == NO_PLACE:
                hint = "a peer is looked for on loopback only where peer_listen is on it, too"
                raise PeerSilent(f"{address}: {NO_PLACE}", hint=hint) from None
            raise PeerSilent(f"{address} cannot be reached: {fault.strerror or fault}") from None
        except aiohttp.ConnectionTimeoutError:
            raise PeerSilent(
                f"{address} cannot be reached: no connection in {limits.PEER_CONNECT_TIMEOUT_MS} ms"
            ) from None
        except TimeoutError:
            raise PeerSilent(f"no answer from {address} within {timeout_ms} ms") from None
        except aiohttp.ClientConnectionError as fault:
            # What came of a head is told by the parser.
            if isinstance(getattr(fault, "message", ""), str):
                raise Dropped from None
            raise PeerSilent(f"{address} does not answer as a peer: it broke off") from None
        except aiohttp.ClientError:
            raise PeerSilent(
                f"{address} does not answer as a peer: its head is malformed"
            ) from None
        except FrameInvalid as fault:
            raise PeerSilent(f"{address} does not answer as a peer: {fault.message}") from None

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=Connector(self._out_max, KEEP_ALIVE_MS // 2, self._is_local),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(sock_connect=limits.PEER_CONNECT_TIMEOUT_MS / 1000),
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
                auto_decompress=False,
                read_bufsize=bounds.PIECE_BYTES,
                max_headers=bounds.HEAD_FIELDS_MAX,
            )
        return self._session

    async def _ask(
        self, address: str, fingerprint: bytes | None, request: RawRequest, body: bounds.Body
    ) -> RawResponse:
        response = await self._connections().request(
            request.method,
            f"http{'s' if fingerprint else ''}://{address}{request.path}",
            headers=request.headers,
            data=body if body.size else None,
            ssl=True if fingerprint is None else _pinned(fingerprint),
            allow_redirects=False,
        )
        held = room.Hold(self._replies, address)
        try:
            size = response.content_length
            if size is None or hdrs.TRANSFER_ENCODING in response.headers:
                raise FrameInvalid("it announces no length")
            if size > limits.PEER_BODY_BYTES_MAX:
                raise TooLarge(f"the answer of {size} bytes is over the bound of a message")

            def take(piece: Buffer) -> None:
                if not held.take(len(piece)):
                    raise RateLimited(
                        "too much is being received already, from this peer or from all"
                    )

            whole = await bounds.read_body(response.content, size, self._progress_ms, take)
            return RawResponse(
                response.status,
                {name.lower(): value for name, value in response.headers.items()},
                [whole] if size else [],
            )
        finally:
            held.give()
            # Given back already where all of both was moved.
            response.close()

    # Answering

    async def serve(self, handler: Handler) -> None:
        """Begin to answer requests.

        Raises:
            ConfigInvalid: the address cannot be listened on.
        """
        self._handler = handler
        self._server = Server(self._respond, self._gate, read_bufsize=bounds.PIECE_BYTES)
        door = None
        if self._certificate is not None:
            context = tls.server_context(self._certificate)
            door = partial(tls.Handshake, context, self._server, self._gate, self._handshakes)
        self._bound_port = await self._server.start(self._host, self._port, "peer_listen", door)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._handler is not None
        size = request.content_length or 0
        if hdrs.TRANSFER_ENCODING in request.headers:
            answer = RawResponse(411)
        elif size > limits.PEER_BODY_BYTES_MAX:
            answer = RawResponse(413)
        else:
            headers: dict[str, str] = {}
            for name, value in request.headers.items():
                # Fields given twice are joined as RFC 9110 says, and so fail where one is due.
                low = name.lower()
                headers[low] = f"{headers[low]}, {value}" if low in headers else value

            async def read(take: Take) -> memoryview:
                return await bounds.read_body(request.content, size, self._progress_ms, take)

            source = source_of(request.remote or "")
            answer = await self._handler(
                Arrival(request.method, request.raw_path, headers, size, read, source)
            )
        try:
            response = web.Response(status=answer.status, headers=answer.headers)
            return await bounds.write_answer(request, response, answer.body, self._progress_ms)
        finally:
            answer.sent()

    async def close(self) -> None:
        """Stop listening, let what runs end for a while, and drop all connections."""
        self._bound_port = None
        if self._server is not None:
            self._server.end()
            for task in self._handshakes:
                task.cancel()
            await asyncio.gather(*self._handshakes, return_exceptions=True)
            await self._server.stop(self._stop_ms)
            self._server = None
        if self._session is not None:
            await self._session.close()
            self._session = None


def _own_host() -> str:
    """Return the address of the interface with the default route; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        host: str = probe.getsockname()[0]
        return host
