"""What bounds HTTP with strangers, at both ends: connections, bytes that are held, and time.

`Gate` bounds the connections that come, `Connector` those that go out, and where to. `Room` bounds
bytes: what is announced is no claim to anything, they are taken as they come, or are made.
`Flow` ends a transfer that does not go on, in `read_body` and `write_body`. Heads have `HEAD`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp import hdrs, web

from xsc.base.errors import FrameInvalid
from xsc.base.limits import (
    ACCEPTED_AT_ONCE_MAX,
    BATCH_CALL_BYTES_MAX,
    BODY_BYTES_A_SECOND_MIN,
    CONNECTIONS_TO_A_PEER_MAX,
    KIB,
    PEER_HEADER_BYTES_MAX,
)
from xsc.base.turns import Turns
from xsc.net.transport.addresses import may_be_peer, source_of
from xsc.net.transport.port import Buffer, Take

HEAD: Final[dict[str, Any]] = {
    "max_line_size": PEER_HEADER_BYTES_MAX // 2,
    "max_field_size": PEER_HEADER_BYTES_MAX // 2,
    "max_headers": 32,
}
"""Bounds of a head, of a request and of an answer."""
PIECE_BYTES: Final = 128 * KIB
"""Written at once: the event loop copies what the socket does not take. The slowest body that is
still allowed brings more in NO_PROGRESS_MS."""
NO_PLACE: Final = "it is no place for a peer: on this machine, or nobody's own"


class Flow:
    """One transfer: within each window so many bytes, or its end. Times are of one clock.

    A mean over the whole would let a sender that was quick at first hold what it has for as long
    as it likes with a byte now and then.

    Args:
        now_s: when it begins.
        window_ms: how long it may take for the bytes that are due.
        bytes_a_second: what is due in a second, on the mean of a window.
    """

    def __init__(self, now_s: float, window_ms: int, bytes_a_second: int) -> None:
        self._window_ms = window_ms
        self._least = max(1, bytes_a_second * window_ms // 1000)
        self._moved = 0
        self.ends_s = now_s + window_ms / 1000
        """When it is given up, unless more moves."""

    def moved(self, now_s: float, size_bytes: int) -> None:
        """Count what has moved; with as much as is due another window begins."""
        self._moved += size_bytes
        if self._moved >= self._least:
            self._moved = 0
            self.ends_s = now_s + self._window_ms / 1000

    def fault(self) -> FrameInvalid:
        """Return what is wrong with a transfer that was given up."""
        if not self._moved:
            return FrameInvalid(f"it stopped: nothing came or went for {self._window_ms} ms")
        return FrameInvalid(
            f"it is too slow: {self._moved} bytes in {self._window_ms} ms, {self._least} are due"
        )

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        """Bound a wait for the next bytes.

        Raises:
            FrameInvalid: they do not come, or too slowly.
        """
        try:
            async with asyncio.timeout_at(self.ends_s):
                yield
        except TimeoutError:
            raise self.fault() from None


async def read_body(
    stream: aiohttp.StreamReader, size_bytes: int | None, window_ms: int, take: Take
) -> memoryview:
    """Return a body, of which no more is held than has come.

    Args:
        stream: brings it.
        size_bytes: how long it is; None where its end says that.
        window_ms: in which it must bring what is due.
        take: shown each piece before it is kept; raises to refuse it.

    Raises:
        FrameInvalid: it ended early or came too slowly.
    """
    body = bytearray()
    loop = asyncio.get_running_loop()
    flow = Flow(loop.time(), window_ms, BODY_BYTES_A_SECOND_MIN)
    while size_bytes is None or len(body) < size_bytes:
        try:
            async with flow.step():
                piece = await stream.readany()
        except (ConnectionError, aiohttp.ClientPayloadError):
            raise FrameInvalid("the body broke off") from None
        if size_bytes is not None and not 0 < len(piece) <= size_bytes - len(body):
            raise FrameInvalid("the body has another length than announced")
        if not piece:
            break
        take(piece)
        flow.moved(loop.time(), len(piece))
        body += piece
    return memoryview(body).toreadonly()


def pieces(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """Yield the buffers in pieces of PIECE_BYTES at most; small bodies as one."""
    if sum(len(buffer) for buffer in buffers) <= PIECE_BYTES:
        yield b"".join(buffers)
        return
    for buffer in buffers:
        view = memoryview(buffer)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]


async def write_body(
    request: web.BaseRequest,
    response: web.StreamResponse,
    body: Sequence[Buffer],
    window_ms: int,
    bytes_a_second: int = BODY_BYTES_A_SECOND_MIN,
) -> web.StreamResponse:
    """Write an answer until the system has all of it; cut off who does not read it."""
    response.headers[hdrs.SERVER] = "xsc"
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    flow = Flow(loop.time(), window_ms, bytes_a_second)
    try:
        for piece in () if request.method == hdrs.METH_HEAD else pieces(body):
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


@asynccontextmanager
async def turn_to_send(
    turns: Turns[str], peer: str, size_bytes: int
) -> AsyncIterator[Callable[[], None]]:
    """Wait until a body may be sent; yield a function that ends the turn.

    Large bodies go to a peer one at a time, each at the full bandwidth: concurrent ones would all
    arrive late, and if this node were killed, each would be incomplete, and therefore useless.
    """
    if size_bytes <= BATCH_CALL_BYTES_MAX:
        yield lambda: None
        return
    async with turns.of(peer) as left:
        yield left


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


class Gate:
    """Counts the connections of a listener, and cuts off idle ones: for newcomers, or in time.

    A connection is idle as long as it has brought no whole request, however much of a head it
    has. Idle ones make room for others, the oldest first; those that are served stay.

    Args:
        most: how many there may be.
        share: how many of one source (`source_of`).
        idle_ms: how long one may be idle.
    """

    def __init__(self, *, most: int, share: int, idle_ms: int) -> None:
        self.backlog = min(most, ACCEPTED_AT_ONCE_MAX)
        """What the listener is to accept at once: nothing is counted in between."""
        self._most = most
        self._share = share
        self._idle_s = idle_ms / 1000
        self._sources: dict[asyncio.Transport, str] = {}
        self._counts: Counter[str] = Counter()
        self._idle: dict[asyncio.Transport, float] = {}
        """Since when, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._sources)

    def enter(self, transport: asyncio.Transport) -> bool:
        """Let a new connection in; where nobody idle can make room for it, it is aborted."""
        peername = transport.get_extra_info("peername")
        source = source_of(str(peername[0])) if peername else ""
        if self._counts[source] >= self._share:
            fits = self._evict(source)
        else:
            fits = len(self._sources) < self._most or self._evict(None)
        if not fits:
            transport.abort()
            return False
        self._sources[transport] = source
        self._counts[source] += 1
        self.quiet(transport)
        return True

    def _evict(self, source: str | None) -> bool:
        """Cut off the oldest idle connection of a source, or of all; say whether there was one."""
        for transport in self._idle:
            if source is None or self._sources[transport] == source:
                self._cut(transport)
                return True
        return False

    def _cut(self, transport: asyncio.Transport) -> None:
        self.leave(transport)
        transport.abort()

    def leave(self, transport: asyncio.Transport) -> None:
        """Count a connection no more."""
        source = self._sources.pop(transport, None)
        self._idle.pop(transport, None)
        if source is not None:
            self._counts[source] -= 1
            if not self._counts[source]:
                del self._counts[source]

    def busy(self, transport: asyncio.Transport) -> None:
        """Note that a connection has brought a whole head."""
        self._idle.pop(transport, None)

    def quiet(self, transport: asyncio.Transport) -> None:
        """Note that a connection waits for a request from now on."""
        if transport not in self._sources or transport.is_closing():
            return
        loop = asyncio.get_running_loop()
        self._idle.pop(transport, None)
        self._idle[transport] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._idle_s, self._sweep)

    @contextmanager
    def serving(self, transport: asyncio.Transport | None) -> Iterator[None]:
        """Keep a connection from being cut off while a request of it is answered."""
        if transport is None:
            yield
            return
        self.busy(transport)
        try:
            yield
        finally:
            self.quiet(transport)

    def _sweep(self) -> None:
        """Cut off what has been idle for too long, and look again when the next one has."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for transport, since in list(self._idle.items()):
            left = since + self._idle_s - loop.time()
            if left > 0:
                self._timer = loop.call_later(left, self._sweep)
                return
            self._cut(transport)

    def close(self) -> None:
        """End the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    holder: Hashable
    size: int
    large: bool
    granted: asyncio.Future[None]


class Room:
    """So much room, and who holds how much of it.

    Args:
        total: how much there is.
        share: how much of it one holder may have.
        small: how much of it only those get who take little.
    """

    def __init__(self, total: int, share: int, *, small: int = 0) -> None:
        assert 0 < share <= total
        assert small < total
        self._left = total
        self._share = share
        self._small = small
        self._held: Counter[Hashable] = Counter()
        self._waiting: deque[_Waiting] = deque()

    def held(self, holder: Hashable) -> int:
        """Return how much somebody has."""
        return self._held[holder]

    def _within_share(self, holder: Hashable, size: int) -> bool:
        return self._held[holder] + size <= self._share

    def take(self, holder: Hashable, size: int, *, large: bool = False, owed: bool = False) -> bool:
        """Take room, if there is enough for this holder.

        Args:
            holder: who.
            size: how much.
            large: whether the holder takes much, and leaves the part for small takers free.
            owed: whether its share does not matter: it is a small answer to what was carried out.
        """
        least = self._small if large else 0
        within = owed or self._within_share(holder, size)
        if not within or self._left - size < least:
            return False
        self._held[holder] += size
        self._left -= size
        return True

    async def wait(self, holder: Hashable, size: int, *, large: bool = False) -> None:
        """Take room once there is enough, after those who have waited for longer.

        A holder whose share is used up waits for itself alone. The size is at most a share.
        """
        assert size <= self._share
        behind = any(
            it.holder == holder or (large and self._within_share(it.holder, it.size))
            for it in self._waiting
        )
        if not behind and self.take(holder, size, large=large):
            return
        waiting = _Waiting(holder, size, large, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._grant()
            else:
                self.give(holder, size)
            raise

    def give(self, holder: Hashable, size: int) -> None:
        """Give room back."""
        self._held[holder] -= size
        self._left += size
        assert self._held[holder] >= 0
        if not self._held[holder]:
            del self._held[holder]
        if self._waiting:
            self._grant()

    def _grant(self) -> None:
        """Let in who waits, in order; who lacks only the total holds up the large ones behind."""
        behind: set[Hashable] = set()
        full = False
        for waiting in list(self._waiting):
            if waiting.granted.done() or waiting.holder in behind or (full and waiting.large):
                continue
            if self.take(waiting.holder, waiting.size, large=waiting.large):
                self._waiting.remove(waiting)
                waiting.granted.set_result(None)
            else:
                full = full or self._within_share(waiting.holder, waiting.size)
                behind.add(waiting.holder)
