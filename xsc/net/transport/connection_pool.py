"""The pool of connections to peers: keep-alive, one request at a time on each.

A body is received into one buffer, which grows with the bytes that arrive, not with the
announced length. A connection is not used again if its request was given up, if it was
answered before all of the request was sent, or if it was idle for longer than peers keep it.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import Callable, Hashable, Sequence

from xsc.base.errors import FrameInvalid, PeerSilent, RateLimited, TooLarge, XscError
from xsc.base.limits import (
    BODY_BYTES_A_SECOND_MIN,
    CONNECTIONS_OUT_MAX,
    CONNECTIONS_TO_A_PEER_MAX,
    FAST_PATH_BYTES_MAX,
    PEER_BODY_BYTES_MAX,
    PEER_CONNECT_TIMEOUT_MS,
    PEER_HEADER_BYTES_MAX,
    REPLIES_A_PEER_BYTES_MAX,
    REPLIES_BYTES_MAX,
    REPLY_STEP_BYTES,
    SMALL_BODIES_BYTES,
    SMALL_BODY_BYTES_MAX,
)
from xsc.net.transport.addresses import is_ip, may_be_peer
from xsc.net.transport.connection import Connection, pieces
from xsc.net.transport.flow import Flow
from xsc.net.transport.parser import END, AnswerHead, read_answer
from xsc.net.transport.port import Buffer, Dropped, RawResponse
from xsc.net.transport.room import Room


class PeerConnection(Connection, asyncio.BufferedProtocol):
    """One connection to a peer."""

    def __init__(
        self, window_ms: int, alive: set[PeerConnection], room: Room, peer: Hashable
    ) -> None:
        super().__init__()
        self._window_ms = window_ms
        self._alive = alive
        self._room = room
        self._peer = peer
        self._taken = 0
        self._loop = asyncio.get_running_loop()
        self._scratch = bytearray(PEER_HEADER_BYTES_MAX)
        self._answer: asyncio.Future[RawResponse] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head: AnswerHead | None = None
        self._into = memoryview(self._scratch)
        self._filled = 0
        self._body: bytearray | None = None
        self._flow: Flow | None = None
        self.idle_since = 0.0
        self.reusable = True
        """Whether another request may be sent on it."""

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        super().connection_made(transport)
        self._alive.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that is under way."""
        self.reusable = False
        begun = self._head is not None or self._filled > 0
        self._fail(FrameInvalid("it broke off") if begun else Dropped())
        super().connection_lost(exc)
        self._alive.discard(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (a hint only)
        """Return the buffer for the next bytes; it is never empty."""
        if self._head is not None and self._body is not None and self._filled == len(self._body):
            # Not when bytes arrive: asyncio still uses the buffer then, so it cannot grow.
            try:
                self._grow(self._body, self._head.size_bytes)
            except RateLimited as fault:
                self._fail(fault)
                self.close()
        return self._into[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take received bytes."""
        if self._answer is None or self._answer.done():
            # No request is under way.
            self.close()
            return
        self._filled += nbytes
        try:
            if self._head is None:
                self._begin(max(0, self._filled - nbytes - len(END)))
                return
            if self._flow is not None:
                self._went_on(self._flow, nbytes)
        except XscError as fault:
            self._fail(fault)
            self.close()

    def _begin(self, looked: int) -> None:
        """Read the head once it is received whole, and the bytes of the body behind it.

        Args:
            looked: up to where the end of the head was looked for already.
        """
        end = self._scratch.find(END, looked, self._filled)
        if end < 0:
            if self._filled == len(self._scratch):
                raise FrameInvalid("its head is over its bound")
            return
        head = self._head = read_answer(bytes(self._scratch[: end + len(END)]))
        if head.size_bytes > PEER_BODY_BYTES_MAX:
            raise TooLarge(f"the answer of {head.size_bytes} bytes is over the bound of a message")
        begun = memoryview(self._scratch)[end + len(END) : self._filled]
        if len(begun) > head.size_bytes:
            raise FrameInvalid("it is longer than announced")
        if head.size_bytes == len(begun):
            self._finish(bytearray(begun))
            return
        self._take(min(head.size_bytes, REPLY_STEP_BYTES))
        self._body = bytearray(self._taken)
        self._body[: len(begun)] = begun
        self._into, self._filled = memoryview(self._body), len(begun)
        self._flow = Flow(self._loop.time(), self._window_ms, BODY_BYTES_A_SECOND_MIN)
        self._timer = self._loop.call_at(self._flow.ends_s, self._check)
        self._went_on(self._flow, len(begun))

    def _take(self, size_bytes: int) -> None:
        """Take room for a body up to this size.

        Raises:
            RateLimited: this peer's answers, or those of all, take up their room already.
        """
        large = size_bytes > SMALL_BODY_BYTES_MAX
        if not self._room.take(self._peer, size_bytes - self._taken, large=large):
            raise RateLimited("too much is being received already, from this peer or from all")
        self._taken = size_bytes

    def _grow(self, body: bytearray, size_bytes: int) -> None:
        """Double the buffer of a body, up to its announced size."""
        self._take(min(size_bytes, 2 * len(body)))
        # A bytearray with views cannot grow.
        self._into.release()
        body.extend(bytes(self._taken - len(body)))
        self._into = memoryview(body)

    def _went_on(self, flow: Flow, size_bytes: int) -> None:
        """Count received bytes of a body, and finish it with the last one."""
        assert self._head is not None
        assert self._body is not None
        flow.moved(self._loop.time(), size_bytes)
        if self._filled == self._head.size_bytes:
            self._finish(self._body)

    def _check(self) -> None:
        """Give up a body that arrives too slowly."""
        assert self._flow is not None
        if self._loop.time() >= self._flow.ends_s:
            self._fail(self._flow.fault())
            self.close()
            return
        self._timer = self._loop.call_at(self._flow.ends_s, self._check)

    def _finish(self, body: bytearray) -> None:
        head = self._head
        assert head is not None
        assert self._answer is not None
        if not head.keeps:
            self.reusable = False
        whole = [memoryview(body).toreadonly()] if head.size_bytes else []
        self._answer.set_result(RawResponse(head.status, head.headers, whole))
        self._rest()
        self._writable.set()

    def _rest(self) -> None:
        """Reset for the next answer."""
        self._room.give(self._peer, self._taken)
        self._taken = 0
        self._head, self._into, self._filled = None, memoryview(self._scratch), 0
        self._body, self._flow = None, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fail(self, fault: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(fault)
        self._rest()

    # Called by the pool

    async def ask(
        self, head: bytes, body: Sequence[Buffer], left: Callable[[], None]
    ) -> RawResponse:
        """Send a request and return its answer; `left` is called once all of it was sent.

        Raises:
            Dropped: the connection ended before any byte of an answer.
            FrameInvalid: the answer is malformed, or arrived too slowly.
            TooLarge: the answer is over the bound of a message.
            RateLimited: there is no room for it here.
        """
        if self._transport is None:
            raise Dropped
        assert self._answer is None
        self._answer = self._loop.create_future()
        whole = False
        try:
            for piece in pieces([head, *body]):
                if not self._writable.is_set():
                    await self._writable.wait()
                if self._answer.done():
                    break
                self._transport.write(piece)
            else:
                left()
                whole = True
            return await self._answer
        finally:
            self._answer = None
            if not whole:
                self.close()

    def close(self) -> None:
        """Abort the connection."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()


class _Peer:
    """The connections to one peer."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(CONNECTIONS_TO_A_PEER_MAX)
        self.users = 0
        self.idle: tuple[list[PeerConnection], list[PeerConnection]] = ([], [])
        """Those for small requests, which stay on the peer's fast path, and those for others."""


class ConnectionPool:
    """All connections to peers.

    Args:
        idle_ms: how long a connection may be idle and still be used.
        progress_ms: the window in which an answer must bring what is due.
        most: how many connections there may be.
        room: for answers that are being received.
    """

    def __init__(
        self,
        *,
        idle_ms: int,
        progress_ms: int,
        most: int = CONNECTIONS_OUT_MAX,
        room: Room | None = None,
    ) -> None:
        self._idle_s = idle_ms / 1000
        self._progress_ms = progress_ms
        self._most = most
        self._room = room or Room(
            REPLIES_BYTES_MAX, REPLIES_A_PEER_BYTES_MAX, small=SMALL_BODIES_BYTES
        )
        self._peers: dict[tuple[str, bytes | None], _Peer] = {}
        self._all: set[PeerConnection] = set()
        self._opening = 0
        """Connections that are being opened."""
        self._timer: asyncio.TimerHandle | None = None
        self._secure: ssl.SSLContext | None = None

    async def ask(
        self,
        place: tuple[str, int],
        fingerprint: bytes | None,
        head: bytes,
        body: Sequence[Buffer],
        left: Callable[[], None],
        *,
        local: Callable[[], bool] = lambda: True,
    ) -> RawResponse:
        """Return the answer of the node at a host and port; see `PeerConnection.ask`.

        Args:
            place: host and port.
            fingerprint: of the certificate that it must show; None for one without TLS.
            head: of the request.
            body: of the request.
            left: called once all of the request was sent.
            local: says whether the other node may be on loopback.

        Raises:
            PeerSilent: no connection, another certificate, or an address that no peer can have.
        """
        host, port = place
        key = (f"{host}:{port}", fingerprint)
        peer = self._peers.setdefault(key, _Peer())
        peer.users += 1
        large = len(head) + sum(len(buffer) for buffer in body) > FAST_PATH_BYTES_MAX
        try:
            async with peer.places:
                connection = self._kept(peer, large) or await self._connected(
                    key, host, port, fingerprint, local
                )
                try:
                    answer = await connection.ask(head, body, left)
                except BaseException as fault:
                    connection.close()
                    if isinstance(fault, Dropped):
                        # The other idle connections to that peer are as old, or older.
                        _close(peer)
                    raise
                if connection.reusable:
                    connection.idle_since = asyncio.get_running_loop().time()
                    peer.idle[large].append(connection)
                    self._watch()
                return answer
        finally:
            peer.users -= 1
            self._drop_empty(key, peer)

    def _kept(self, peer: _Peer, large: bool) -> PeerConnection | None:
        oldest = asyncio.get_running_loop().time() - self._idle_s
        idle = peer.idle[large]
        while idle:
            connection = idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    def _make_place(self, where: str) -> None:
        """Close an idle connection if another one could not be opened otherwise.

        Raises:
            PeerSilent: all are in use.
        """
        if len(self._all) + self._opening < self._most:
            return
        idle = [
            connection
            for peer in self._peers.values()
            for kept in peer.idle
            for connection in kept
            if connection.reusable
        ]
        if not idle:
            raise PeerSilent(f"{where} is not asked: this node has {self._most} connections open")
        min(idle, key=lambda connection: connection.idle_since).close()

    async def _found(self, host: str, port: int, *, local: bool) -> list[str]:
        """Return the IP addresses of a host, those that a peer may have.

        Raises:
            OSError: it has none.
            PeerSilent: none of them is a peer's.
        """
        if is_ip(host):
            every = [host.strip("[]")]
        else:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            every = [str(info[4][0]) for info in found]
        allowed = [ip for ip in every if may_be_peer(ip, local=local)]
        if not allowed:
            raise PeerSilent(
                f"{host} is no place for a peer: it is on this machine, or nobody's own",
                hint="a peer is looked for on loopback only where peer_listen is on it, too",
            )
        return allowed

    async def _connected(
        self,
        key: Hashable,
        host: str,
        port: int,
        fingerprint: bytes | None,
        local: Callable[[], bool],
    ) -> PeerConnection:
        loop = asyncio.get_running_loop()
        where = f"{host}:{port}"
        self._make_place(where)
        self._opening += 1
        fault: OSError | None = None
        try:
            async with asyncio.timeout(PEER_CONNECT_TIMEOUT_MS / 1000) as patience:
                for ip in await self._found(host, port, local=local()):
                    try:
                        transport, connection = await loop.create_connection(
                            lambda: PeerConnection(self._progress_ms, self._all, self._room, key),
                            ip,
                            port,
                            ssl=None if fingerprint is None else self._context(),
                        )
                        break
                    except OSError as met:
                        fault = met
                else:
                    assert fault is not None
                    raise fault
        except TimeoutError:
            if not patience.expired():
                raise
            raise PeerSilent(
                f"{where} cannot be reached: no connection in {PEER_CONNECT_TIMEOUT_MS} ms"
            ) from None
        except OSError as fault:
            raise PeerSilent(f"{where} cannot be reached: {fault.strerror or fault}") from None
        finally:
            self._opening -= 1
        if fingerprint is not None:
            secure: ssl.SSLObject = transport.get_extra_info("ssl_object")
            shown = secure.getpeercert(binary_form=True) or b""
            if hashlib.sha256(shown).digest() != fingerprint:
                connection.close()
                raise PeerSilent(
                    f"{where} shows another certificate than the peer's",
                    hint="it may have moved, or somebody stands between",
                )
        return connection

    def _context(self) -> ssl.SSLContext:
        """Return the TLS context; the pinned fingerprint is compared after the handshake."""
        if self._secure is None:
            self._secure = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._secure.check_hostname = False
            self._secure.verify_mode = ssl.CERT_NONE
            self._secure.minimum_version = ssl.TLSVersion.TLSv1_3
            self._secure.set_alpn_protocols(["http/1.1"])
        return self._secure

    def _watch(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._idle_s, self._sweep)

    def _sweep(self) -> None:
        """Close connections that were idle for too long."""
        self._timer = None
        oldest = asyncio.get_running_loop().time() - self._idle_s
        for key, peer in list(self._peers.items()):
            for idle in peer.idle:
                for connection in [kept for kept in idle if kept.idle_since <= oldest]:
                    connection.close()
                idle[:] = [kept for kept in idle if kept.reusable]
            self._drop_empty(key, peer)
        if self._peers:
            self._watch()

    def _drop_empty(self, key: tuple[str, bytes | None], peer: _Peer) -> None:
        if not peer.users and not any(peer.idle) and self._peers.get(key) is peer:
            del self._peers[key]

    async def close(self) -> None:
        """Abort all connections; requests that are under way get no answer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for peer in self._peers.values():
            _close(peer)
        for connection in list(self._all):
            connection.close()
        # asyncio calls `connection_lost` in the next turn.
        await asyncio.sleep(0)


def _close(peer: _Peer) -> None:
    for idle in peer.idle:
        for connection in idle:
            connection.close()
        idle.clear()
