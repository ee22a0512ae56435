"""Connections to peers: kept, each with one request under way, read into place.

A body is received into one buffer of its announced length. A connection whose
request was given up, or was answered before all of it was sent, is not used
again; nor is one that was idle for longer than peers keep them.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable, Sequence

from xsc.base.errors import FrameInvalid, PeerSilent, TooLarge, XscError
from xsc.base.limits import (
    BODY_BYTES_A_SECOND_MIN,
    CONNECTIONS_TO_A_PEER_MAX,
    PEER_BODY_BYTES_MAX,
    PEER_CONNECT_TIMEOUT_MS,
    PEER_HEADER_BYTES_MAX,
    PLAIN_BYTES_MAX,
)
from xsc.net import answers
from xsc.net.plain import pieces
from xsc.net.port import Buffer, Dropped, RawResponse


class Line(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self, progress_s: float, alive: set[Line]) -> None:
        self._progress_s = progress_s
        self._alive = alive
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._scratch = bytearray(PEER_HEADER_BYTES_MAX)
        self._answer: asyncio.Future[RawResponse] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head: answers.Head | None = None
        self._into = memoryview(self._scratch)
        self._filled = 0
        self._last = 0.0
        """When something of a body came."""
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
            self._last = self._loop.time()
            if self._filled == len(self._into):
                self._finish(self._into)
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
        body = bytearray(head.size_bytes)
        body[: len(begun)] = begun
        if len(begun) == head.size_bytes:
            self._finish(memoryview(body))
            return
        self._into, self._filled = memoryview(body), len(begun)
        self._last = self._loop.time()
        deadline = self._last + self._progress_s + head.size_bytes / BODY_BYTES_A_SECOND_MIN
        self._timer = self._loop.call_later(self._progress_s, self._check, deadline)

    def _check(self, deadline: float) -> None:
        """Give up a body that brings nothing, or too little."""
        now = self._loop.time()
        again = self._last + self._progress_s
        if now >= again or now >= deadline:
            self._fail(FrameInvalid("it stopped" if now >= again else "it comes too slowly"))
            self.close()
            return
        self._timer = self._loop.call_at(min(again, deadline), self._check, deadline)

    def _finish(self, body: memoryview) -> None:
        head = self._head
        assert head is not None
        assert self._answer is not None
        if not head.keeps:
            self.reusable = False
        whole = [body.toreadonly()] if head.size_bytes else []
        self._answer.set_result(RawResponse(head.status, head.headers, whole))
        self._rest()
        self._wake()

    def _rest(self) -> None:
        """Make ready for the next answer."""
        self._head, self._into, self._filled = None, memoryview(self._scratch), 0
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
        progress_ms: how long an answer may bring nothing.
    """

    def __init__(self, *, idle_ms: int, progress_ms: int) -> None:
        self._idle_s = idle_ms / 1000
        self._progress_s = progress_ms / 1000
        self._peers: dict[tuple[str, bytes | None], _Peer] = {}
        self._all: set[Line] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._secure: ssl.SSLContext | None = None

    async def ask(
        self,
        place: tuple[str, int],
        fingerprint: bytes | None,
        head: bytes,
        body: Sequence[Buffer],
        left: Callable[[], None],
    ) -> RawResponse:
        """Return the answer of the node at a host and port; see `Line.ask`.

        Raises:
            PeerSilent: no connection, or another certificate.
        """
        host, port = place
        key = (f"{host}:{port}", fingerprint)
        peer = self._peers.setdefault(key, _Peer())
        peer.users += 1
        large = len(head) + sum(len(buffer) for buffer in body) > PLAIN_BYTES_MAX
        try:
            async with peer.places:
                line = self._kept(peer, large) or await self._connected(host, port, fingerprint)
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

    async def _connected(self, host: str, port: int, fingerprint: bytes | None) -> Line:
        loop = asyncio.get_running_loop()
        where = f"{host}:{port}"
        try:
            async with asyncio.timeout(PEER_CONNECT_TIMEOUT_MS / 1000) as patience:
                transport, line = await loop.create_connection(
                    lambda: Line(self._progress_s, self._all),
                    host.strip("[]"),
                    port,
                    ssl=None if fingerprint is None else self._context(),
                )
        except TimeoutError:
            if not patience.expired():
                raise
            raise PeerSilent(
                f"{where} cannot be reached: no connection in {PEER_CONNECT_TIMEOUT_MS} ms"
            ) from None
        except OSError as fault:
            raise PeerSilent(f"{where} cannot be reached: {fault.strerror or fault}") from None
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
