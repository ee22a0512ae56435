"""Connections to peers: kept, each with one request under way, read into place.

A body is received into one buffer, which grows as it comes: what a peer announces
is not held for it. A connection whose request was given up, or was answered before
all of it was sent, is not used again; nor is one that was idle for longer than peers
keep them.
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
    PEER_BODY_BYTES_MAX,
    PEER_CONNECT_TIMEOUT_MS,
    PEER_HEADER_BYTES_MAX,
    PLAIN_BYTES_MAX,
    REPLIES_A_PEER_BYTES_MAX,
    REPLIES_BYTES_MAX,
    REPLY_STEP_BYTES,
    SMALL_BODIES_BYTES,
    SMALL_BODY_BYTES_MAX,
)
from xsc.net.transport import answers
from xsc.net.transport.addresses import is_ip, may_be_peer
from xsc.net.transport.flow import Flow
from xsc.net.transport.plain import pieces
from xsc.net.transport.port import Buffer, Dropped, RawResponse
from xsc.net.transport.room import Room


class Line(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self, window_ms: int, alive: set[Line], room: Room, peer: Hashable) -> None:
        self._window_ms = window_ms
        self._alive = alive
        self._room = room
        self._peer = peer
        self._taken = 0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._scratch = bytearray(PEER_HEADER_BYTES_MAX)
        self._answer: asyncio.Future[RawResponse] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head: answers.Head | None = None
        self._into = memoryview(self._scratch)
        self._filled = 0
        self._body: bytearray | None = None
        self._flow: Flow | None = None
        self.idle_since = 0.0
        self.reusable = True
        """Whether another request may go this way; False once it is not to be trusted."""

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._alive.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (each end is one)
        """End: what is under way has no answer."""
        self.reusable = False
        self._transport = None
        begun = self._head is not None or self._filled > 0
        self._fail(FrameInvalid("it broke off") if begun else Dropped())
        self._wake()
        self._alive.discard(self)

    def pause_writing(self) -> None:
        """Send no more for now."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """Go on sending."""
        self._wake()

    def _wake(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (a hint only)
        """Return where the next bytes go; it is never empty."""
        if self._head is not None and self._body is not None and self._filled == len(self._body):
            # Here and not when they have come: who brings them still holds the buffer then.
            try:
                self._grow(self._body, self._head.size_bytes)
            except RateLimited as fault:
                self._fail(fault)
                self.close()
        return self._into[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come."""
        if self._answer is None or self._answer.done():
            # Nobody has asked for it.
            self.close()
            return
        self._filled += nbytes
        try:
            if self._head is None:
                self._begin(max(0, self._filled - nbytes - len(answers.END)))
                return
            if self._flow is not None:
                self._went_on(self._flow, nbytes)
        except XscError as fault:
            self._fail(fault)
            self.close()

    def _begin(self, looked: int) -> None:
        """Read the head, once it is whole, and what came with it of the body."""
        end = self._scratch.find(answers.END, looked, self._filled)
        if end < 0:
            if self._filled == len(self._scratch):
                raise FrameInvalid("its head is over its bound")
            return
        head = self._head = answers.read_head(bytes(self._scratch[:end]))
        if head.size_bytes > PEER_BODY_BYTES_MAX:
            raise TooLarge(f"the answer of {head.size_bytes} bytes is over the bound of a message")
        begun = memoryview(self._scratch)[end + len(answers.END) : self._filled]
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
        """Have room for so much of a body.

        Raises:
            RateLimited: this peer's answers, or those of all, take up their room already.
        """
        large = size_bytes > SMALL_BODY_BYTES_MAX
        if not self._room.take(self._peer, size_bytes - self._taken, large=large):
            raise RateLimited("too much is being received already, from this peer or from all")
        self._taken = size_bytes

    def _grow(self, body: bytearray, size_bytes: int) -> None:
        """Make room for as many bytes of a body again as have come."""
        self._take(min(size_bytes, 2 * len(body)))
        # A buffer that others look into cannot grow.
        self._into.release()
        body.extend(bytes(self._taken - len(body)))
        self._into = memoryview(body)

    def _went_on(self, flow: Flow, size_bytes: int) -> None:
        """Take note of bytes of a body."""
        assert self._head is not None
        assert self._body is not None
        flow.moved(self._loop.time(), size_bytes)
        if self._filled == self._head.size_bytes:
            self._finish(self._body)

    def _check(self) -> None:
        """Give up a body that brings nothing, or too little."""
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
        self._wake()

    def _rest(self) -> None:
        """Make ready for the next answer."""
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

    # What the pool asks for

    async def ask(
        self, head: bytes, body: Sequence[Buffer], left: Callable[[], None]
    ) -> RawResponse:
        """Return the answer to a request; `left` is called once all of it has left.

        Raises:
            Dropped: the connection ended before any byte of an answer.
            FrameInvalid, TooLarge: the answer is none, or over its bound.
            RateLimited: there is no room for it here.
        """
        if self._transport is None:
            raise Dropped
        assert self._answer is None
        self._answer = self._loop.create_future()
        whole = False
        try:
            for piece in pieces([head, *body]):
                while self._writable is not None:
                    await asyncio.shield(self._writable)
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
        """Drop the connection."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()


class _Peer:
    """The connections to one end."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(CONNECTIONS_TO_A_PEER_MAX)
        self.users = 0
        self.idle: tuple[list[Line], list[Line]] = ([], [])
        """Those that small requests used, which the other end may read plainly, and others."""


class Lines:
    """All connections to peers.

    Args:
        idle_ms: how long one may be idle and still be used.
        progress_ms: the window in which an answer must bring what is due.
        most: how many there may be.
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
        self._all: set[Line] = set()
        self._opening = 0
        """Connections that are being made."""
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
        """Return the answer of the node at a host and port; see `Line.ask`.

        Args:
            place: host and port.
            fingerprint: of the certificate that it must show; None for one without TLS.
            head: of the request.
            body: of the request.
            left: called once all of it has left.
            local: says whether the other node may be on loopback.

        Raises:
            PeerSilent: no connection, another certificate, or no place that a peer can be at.
        """
        host, port = place
        key = (f"{host}:{port}", fingerprint)
        peer = self._peers.setdefault(key, _Peer())
        peer.users += 1
        large = len(head) + sum(len(buffer) for buffer in body) > PLAIN_BYTES_MAX
        try:
            async with peer.places:
                line = self._kept(peer, large) or await self._connected(
                    key, host, port, fingerprint, local
                )
                try:
                    answer = await line.ask(head, body, left)
                except BaseException as fault:
                    line.close()
                    if isinstance(fault, Dropped):
                        # The others to that end are as old, or older.
                        _close(peer)
                    raise
                if line.reusable:
                    line.idle_since = asyncio.get_running_loop().time()
                    peer.idle[large].append(line)
                    self._watch()
                return answer
        finally:
            peer.users -= 1
            self._drop_empty(key, peer)

    def _kept(self, peer: _Peer, large: bool) -> Line | None:
        oldest = asyncio.get_running_loop().time() - self._idle_s
        idle = peer.idle[large]
        while idle:
            line = idle.pop()
            if line.reusable and line.idle_since > oldest:
                return line
            line.close()
        return None

    def _make_place(self, where: str) -> None:
        """See to it that one more connection may be opened.

        Raises:
            PeerSilent: all are in use.
        """
        if len(self._all) + self._opening < self._most:
            return
        idle = [
            line
            for peer in self._peers.values()
            for lines in peer.idle
            for line in lines
            if line.reusable
        ]
        if not idle:
            raise PeerSilent(f"{where} is not asked: this node has {self._most} connections open")
        min(idle, key=lambda line: line.idle_since).close()

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
    ) -> Line:
        loop = asyncio.get_running_loop()
        where = f"{host}:{port}"
        self._make_place(where)
        self._opening += 1
        fault: OSError | None = None
        try:
            async with asyncio.timeout(PEER_CONNECT_TIMEOUT_MS / 1000) as patience:
                for ip in await self._found(host, port, local=local()):
                    try:
                        transport, line = await loop.create_connection(
                            lambda: Line(self._progress_ms, self._all, self._room, key),
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
                line.close()
                raise PeerSilent(
                    f"{where} shows another certificate than the peer's",
                    hint="it may have moved, or somebody stands between",
                )
        return line

    def _context(self) -> ssl.SSLContext:
        """Return how peers are met: the pin is compared afterwards, and is all that counts."""
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
        """Close what was idle for too long."""
        self._timer = None
        oldest = asyncio.get_running_loop().time() - self._idle_s
        for key, peer in list(self._peers.items()):
            for idle in peer.idle:
                for line in [line for line in idle if line.idle_since <= oldest]:
                    line.close()
                idle[:] = [line for line in idle if line.reusable]
            self._drop_empty(key, peer)
        if self._peers:
            self._watch()

    def _drop_empty(self, key: tuple[str, bytes | None], peer: _Peer) -> None:
        if not peer.users and not any(peer.idle) and self._peers.get(key) is peer:
            del self._peers[key]

    async def close(self) -> None:
        """Drop all connections; what is under way ends unanswered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for peer in self._peers.values():
            _close(peer)
        for line in list(self._all):
            line.close()
        # Their ends are told in the next turn.
        await asyncio.sleep(0)


def _close(peer: _Peer) -> None:
    for idle in peer.idle:
        for line in idle:
            line.close()
        idle.clear()
