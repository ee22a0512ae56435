"""What bounds HTTP with strangers, at both ends: connections, bytes that are held, and time.

`Gate` bounds the connections that come. `Flow` ends a transfer that does not go on, in
`read_body` and `write_answer`. Heads have `HEAD_FIELDS_MAX` and `Held`, bytes `xsc.base.room`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from math import inf
from typing import Any, Final

import aiohttp
from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMessage

from xsc.base import limits
from xsc.base.errors import FrameInvalid
from xsc.base.limits import KIB, NO_PROGRESS_MS
from xsc.base.turns import Turns
from xsc.net.transport import addresses, port

ACCEPTED_AT_ONCE_MAX = 100
"""Connections that are taken from the system before the first of them is counted."""
PEER_HEADER_BYTES_MAX = 16 * KIB
"""Half of what is held of a head: of its first line, or of its fields."""
BODY_BYTES_A_SECOND_MIN = 16 * KIB
"""What is due in a window, of a body and of an answer: slower ones are given up."""
assert 128 * KIB <= BODY_BYTES_A_SECOND_MIN * NO_PROGRESS_MS // 1000

HEAD_FIELDS_MAX: Final = 32
"""Of a request and of an answer; aiohttp bounds each line to 8 KiB."""
HELD_BYTES_MAX: Final = 2 * PEER_HEADER_BYTES_MAX
"""Of what is not whole yet: a head with its first line, or what stands between bytes of a body."""
PIECE_BYTES: Final = 128 * KIB
"""Written at once: the event loop copies what the socket does not take. The slowest body that is
still allowed brings more in NO_PROGRESS_MS."""
GATHERED_BYTES: Final = 16 * KIB
"""Smaller pieces are joined with the next."""


class Held:
    """aiohttp's parser, with a bound for all that it holds: it has one for each field alone.

    Args:
        parser: of one end of a connection.
        heads: how many there may be; none may only inform.
    """

    def __init__(self, parser: Any, heads: float = inf) -> None:  # noqa: ANN401 - aiohttp's own
        self._parser = parser
        self._heads = heads
        self._payload: Any = aiohttp.EMPTY_PAYLOAD
        self._held = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the parser's
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> tuple[Sequence[Any], bool, bytes]:
        """Return what has become whole with some bytes, as the parser does.

        Raises:
            HttpProcessingError: they are malformed, a head that nobody asked for, or too many
                without a whole head or a byte of a body among them.
        """
        if self._held >= HELD_BYTES_MAX:
            raise BadHttpMessage(f"a head of more than {HELD_BYTES_MAX} bytes")
        # Of a body nothing is held: it is not copied for this.
        size = HELD_BYTES_MAX - self._held if self._payload.is_eof() else len(data)
        piece, more = data[:size], data[size:]
        before = self._payload.total_bytes
        found, upgraded, rest = self._parser.feed_data(piece)
        self._held += len(piece)
        self._heads -= len(found)
        if found or self._payload.total_bytes > before:
            self._held = 0
        for message, self._payload in found:
            if getattr(message, "code", 200) < 200 or self._heads < 0:
                raise BadHttpMessage("nobody asked for such a head")
        if upgraded or not more:
            return found, upgraded, rest + more
        others, upgraded, rest = self.feed_data(more)
        return [*found, *others], upgraded, rest


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
        self._patience: asyncio.Timeout | None = None

    def moved(self, now_s: float, size_bytes: int) -> None:
        """Count what has moved; with as much as is due another window begins."""
        self._moved += size_bytes
        if self._moved >= self._least:
            self._moved = 0
            self.ends_s = now_s + self._window_ms / 1000
            if self._patience is not None:
                self._patience.reschedule(self.ends_s)

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        """Bound the time of what moves the bytes.

        Raises:
            FrameInvalid: they do not come, or too slowly.
        """
        try:
            async with asyncio.timeout_at(self.ends_s) as self._patience:
                yield
        except TimeoutError:
            raise FrameInvalid(
                f"it {'is too slow' if self._moved else 'stopped'}: {self._moved} bytes in "
                f"{self._window_ms} ms, {self._least} are due"
            ) from None


async def read_body(
    stream: aiohttp.StreamReader, size_bytes: int | None, window_ms: int, take: port.Take
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
    parts: list[bytes | bytearray] = []
    come = 0
    loop = asyncio.get_running_loop()
    flow = Flow(loop.time(), window_ms, BODY_BYTES_A_SECOND_MIN)
    try:
        if stream.is_eof() and stream.total_bytes == size_bytes:
            # A small one has come with its head.
            whole = await stream.readany()
            take(whole)
            return memoryview(whole)
        async with flow.going():
            while size_bytes is None or come < size_bytes:
                piece = await stream.readany()
                if size_bytes is not None and not 0 < len(piece) <= size_bytes - come:
                    raise FrameInvalid("the body has another length than announced")
                if not piece:
                    break
                take(piece)
                flow.moved(loop.time(), len(piece))
                come += len(piece)
                # Small ones are gathered: each of two bytes would take forty by itself.
                if len(piece) >= GATHERED_BYTES:
                    parts.append(piece)
                elif parts and isinstance(parts[-1], bytearray) and len(parts[-1]) < PIECE_BYTES:
                    parts[-1] += piece
                else:
                    parts.append(bytearray(piece))
    except (ConnectionError, aiohttp.ClientPayloadError):
        raise FrameInvalid("the body broke off") from None
    # Joined once: nothing else runs meanwhile that could do the same.
    return memoryview(b"".join(parts))


def pieces(buffers: Sequence[port.Buffer]) -> Iterator[port.Buffer]:
    """Yield the buffers in pieces of PIECE_BYTES at most; small bodies as one."""
    if sum(len(buffer) for buffer in buffers) <= PIECE_BYTES:
        yield b"".join(buffers)
        return
    for buffer in buffers:
        view = memoryview(buffer)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]


class Body(aiohttp.Payload):
    """Buffers that are not joined.

    Args:
        buffers: the buffers.
        flow: bounds the time of what is written.
        left: called once all of it was written.
    """

    def __init__(
        self,
        buffers: Sequence[port.Buffer],
        flow: Flow | None = None,
        left: Callable[[], None] = port.nothing,
    ) -> None:
        super().__init__(buffers)
        self._size = sum(len(buffer) for buffer in buffers)
        self._flow = flow
        self._left = left

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return it as text; aiohttp asks every body for that."""
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: Any) -> None:  # noqa: ANN401 - aiohttp's own
        """Write it piece by piece."""
        for piece in pieces(self._value):
            await writer.write(piece)
            if self._flow is not None:
                self._flow.moved(asyncio.get_running_loop().time(), len(piece))
        self._left()


async def write_answer(
    request: web.BaseRequest,
    response: web.Response,
    body: Sequence[port.Buffer],
    window_ms: int,
    bytes_a_second: int = BODY_BYTES_A_SECOND_MIN,
) -> web.StreamResponse:
    """Write an answer until the system has all of it; cut off who does not read it."""
    response.headers[hdrs.SERVER] = "xsc"
    size = sum(len(buffer) for buffer in body)
    flow = Flow(asyncio.get_running_loop().time(), window_ms, bytes_a_second)
    response.body = b"".join(body) if size <= PIECE_BYTES else Body(body, flow)
    try:
        if size <= PIECE_BYTES:
            # It leaves with its head, and waits for nobody.
            await response.prepare(request)
            await response.write_eof()
            if request.transport is None or not request.transport.get_write_buffer_size():
                return response
        async with flow.going():
            await response.prepare(request)
            await response.write_eof()
            await request.writer.drain()
    except FrameInvalid:
        # The reader does not read. Nothing can be told to it any more.
        if request.transport is not None:
            request.transport.abort()
    finally:
        # aiohttp keeps the last answer of a connection until its next request.
        response.body = None
    return response


@asynccontextmanager
async def turn_to_send(
    turns: Turns[str], peer: str, size_bytes: int
) -> AsyncIterator[Callable[[], None]]:
    """Wait until a body may be sent; yield a function that ends the turn.

    Large bodies go to a peer one at a time, each at the full bandwidth: concurrent ones would all
    arrive late, and if this node were killed, each would be incomplete, and therefore useless.
    """
    if size_bytes <= limits.BATCH_CALL_BYTES_MAX:
        yield port.nothing
        return
    async with turns.of(peer) as left:
        yield left


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
        self._idle: dict[asyncio.Transport, asyncio.TimerHandle] = {}
        """The oldest first, with what cuts them off in time."""

    def __len__(self) -> int:
        return len(self._sources)

    def enter(self, transport: asyncio.Transport) -> bool:
        """Let a new connection in; where nobody idle can make room for it, it is aborted."""
        peername = transport.get_extra_info("peername")
        source = addresses.source_of(str(peername[0])) if peername else ""
        full = list(self._sources.values()).count(source) >= self._share
        if full or len(self._sources) >= self._most:
            rivals = (it for it in self._idle if not full or self._sources[it] == source)
            oldest = next(rivals, None)
            if oldest is None:
                transport.abort()
                return False
            self._cut(oldest)
        self._sources[transport] = source
        self.quiet(transport)
        return True

    def _cut(self, transport: asyncio.Transport) -> None:
        self.leave(transport)
        transport.abort()

    def leave(self, transport: asyncio.Transport) -> None:
        """Count a connection no more."""
        self.busy(transport)
        self._sources.pop(transport, None)

    def busy(self, transport: asyncio.Transport) -> None:
        """Note that a connection has brought a whole head."""
        timer = self._idle.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def quiet(self, transport: asyncio.Transport) -> None:
        """Note that a connection waits for a request from now on."""
        if transport in self._sources and not transport.is_closing():
            self.busy(transport)
            loop = asyncio.get_running_loop()
            self._idle[transport] = loop.call_later(self._idle_s, self._cut, transport)

    @contextmanager
    def serving(self, transport: asyncio.Transport, *, kept: bool = True) -> Iterator[None]:
        """Keep a connection from being cut off while a request of it is answered, if it is kept."""
        (self.busy if kept else self.quiet)(transport)
        try:
            yield
        finally:
            self.quiet(transport)

    def close(self) -> None:
        """End the timers."""
        for transport in list(self._idle):
            self.busy(transport)
