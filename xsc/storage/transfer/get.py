"""Reads an object: k verified shards a segment, decoded and decrypted in order.

Touches hosts through `HostClient`. A wrong shard never reaches the decoder, and a
segment that does not open never reaches the reader whole. Of a segment that is read in
part, only the leaves that hold it are fetched, each held against the roots of the
manifest. What is fetched and not yet delivered is a segment at most, which bounds memory
and what a reader that is killed fetches again: what it was given last is kept (`read_ahead`).
The data columns of a segment are opened in order, each where its shard has just been
verified: none waits for the rest of its segment.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from xsc.base.errors import ArgumentInvalid, RecordInvalid
from xsc.storage.object import segment as segments
from xsc.storage.object.erasure import Buffer, Code, decode_rows
from xsc.storage.object.inventory import SegmentShards
from xsc.storage.object.manifest import Manifest, code_of, place_of
from xsc.storage.object.segment import Opener, Piece, Place, is_whole, pieces_of, rebuild_span
from xsc.storage.transfer import read_ahead_cache
from xsc.storage.transfer.host_client import HostClient, Source, stop_all, together
from xsc.storage.transfer.race import in_order, race

SEGMENTS_BEGUN = 2
"""The one that is read, and the next."""


@dataclass(frozen=True, slots=True)
class Located:
    """An object that was found, and everything about it verified."""

    locate: bytes
    manifest: Manifest
    sealed: bytes
    holders: tuple[tuple[bytes, ...], ...]
    """By column, the nodes that should hold it: by the own placement, or by their own word."""

    @property
    def sources(self) -> list[Source]:
        """Every column at every node that should hold it."""
        return [Source(column, node) for column, nodes in enumerate(self.holders) for node in nodes]

    def segment(self, index: int) -> SegmentShards:
        """Return what the shards of one segment must be."""
        manifest = self.manifest
        length = place_of(manifest, self.locate, index).length
        return SegmentShards(
            self.locate, code_of(manifest), index, length, roots_of(manifest, index)
        )


def roots_of(manifest: Manifest, index: int) -> tuple[bytes, ...]:
    """Return the roots of one segment, in order of columns."""
    n = manifest.k + manifest.m
    return manifest.roots[index * n : (index + 1) * n]


def first_of_each(sources: Sequence[Source]) -> list[Source]:
    """Return the first source of each column, in the same order."""
    firsts: dict[int, Source] = {}
    for source in sources:
        firsts.setdefault(source.column, source)
    return list(firsts.values())


def _decipher(
    content_key: bytes, nonce: bytes, start: int, pieces: Sequence[Piece], leaves: Sequence[Buffer]
) -> bytes:
    plain = []
    for piece, data in zip(pieces, leaves, strict=True):
        wanted = memoryview(data)[piece.low : piece.high]
        plain.append(segments.decipher_at(content_key, nonce, start, wanted))
        start += len(wanted)
    return b"".join(plain)


class ByteBudget:
    """So many bytes that may be on their way at once; who comes first is served first."""

    def __init__(self, size_bytes: int) -> None:
        self._free = self._size = size_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def ticket(self, size_bytes: int) -> asyncio.Future[None]:
        """Return what is done once there is room for so much; it is taken then."""
        assert size_bytes <= self._size
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, done))
        self._serve()
        return done

    def free(self, size_bytes: int) -> None:
        """Give back what has been delivered."""
        self._free += size_bytes
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size, done = self._waiting.popleft()
            if not done.done():
                self._free -= size
                done.set_result(None)


def row_bytes(length: int, code: Code) -> list[int]:
    """Return how many bytes of a segment each data column holds, without the padding."""
    size = code.shard_bytes(length)
    return [max(0, min(size, length - row * size)) for row in range(code.k)]


class SegmentDecoder:
    """The shards of one segment that come in, and what can be read of it by them."""

    def __init__(self, opener: Opener, place: Place, code: Code, budget: ByteBudget) -> None:
        self._opener = opener
        self._place = place
        self._code = code
        self._sizes = row_bytes(place.length, code)
        self._rows: dict[int, Buffer] = {}
        self._next = 0
        self._turn = threading.Lock()
        self._opened: deque[bytes] = deque()
        self._fault: RecordInvalid | None = None
        self.tickets: Sequence[asyncio.Future[None]] = [budget.ticket(size) for size in self._sizes]
        """As many shards may be asked for as are done, from the first on."""

    def take(self, column: int, shard: Buffer) -> None:
        """Take a verified shard, in any thread; what becomes readable by it is opened here."""
        with self._turn:
            if len(shard) != self._code.shard_bytes(self._place.length):
                self._fault = RecordInvalid(
                    f"a shard of segment {self._place.index} is not as long as it should be"
                )
            elif self._next <= column < self._code.k:
                self._rows[column] = shard
                self._open()

    def complete(self, shards: Mapping[int, Buffer]) -> None:
        """Rebuild the data columns that did not come, of k shards that did, and open them.

        Raises:
            RecordInvalid: the segment was sealed otherwise, or a shard is of the wrong size.
        """
        with self._turn:
            if self._fault is None and self._next < self._code.k:
                rows = decode_rows(shards, self._code, self._place.length)
                self._rows = dict(enumerate(rows))
                self._open()
            if self._fault is not None:
                raise self._fault

    @property
    def is_open(self) -> bool:
        """Whether all of it was opened, and is what was sealed."""
        return self._next == self._code.k and self._fault is None

    def opened(self) -> Iterable[bytes]:
        """Yield what became readable since the last call, in order."""
        while self._opened:
            yield self._opened.popleft()

    def _open(self) -> None:
        while self._fault is None and self._next in self._rows:
            row = memoryview(self._rows.pop(self._next))[: self._sizes[self._next]]
            plain = self._opener.update(row)
            self._next += 1
            if self._next == self._code.k:
                try:
                    # The last column is held back until the tag has covered all of them.
                    self._opener.finish()
                except RecordInvalid as fault:
                    self._fault = fault
                    return
            self._opened.append(plain)


class _Coming:
    """The plaintext of one segment, in pieces, as they can be read."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[tuple[Buffer, int] | None] = asyncio.Queue()

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Do what gives the pieces."""
        self.task = asyncio.create_task(work)
        self.task.add_done_callback(lambda _: self._pieces.put_nowait(None))

    def give(self, piece: Buffer, held_bytes: int) -> None:
        """Give the next piece, and say how much room was taken for it."""
        self._pieces.put_nowait((piece, held_bytes))

    async def whole(self) -> None:
        """Return once all pieces are given; raises what kept them from it."""
        await asyncio.wait([self.task])
        self.task.result()

    async def next(self) -> tuple[Buffer, int] | None:
        """Return the next piece and its room, or None behind the last.

        Raises what kept it from coming.
        """
        given = await self._pieces.get()
        if given is None:
            self.task.result()
        return given


class ObjectReader:
    """An object that can be read, from the start or from anywhere in it."""

    def __init__(
        self,
        client: HostClient,
        located: Located,
        content_key: bytes,
        read_ahead: read_ahead_cache.ReadAheadCache,
        *,
        search: Callable[[Located], Coroutine[None, None, Located]] | None = None,
        own_first: bool = False,
    ) -> None:
        """Begin.

        Args:
            client: the hosts.
            located: the object.
            content_key: that opens its segments.
            read_ahead: keeps what a reader that goes away was given last.
            search: asks all peers what they hold; None: only the known hosts are asked.
            own_first: segments are read whole, shards of this node first, parity or not.
        """
        self.received_bytes = 0
        """What came from other nodes, of segments that were read whole."""
        self.size_bytes = located.manifest.size_bytes
        self._client = client
        self._located = located
        self._content_key = content_key
        self._own_first = own_first
        self._read_ahead = read_ahead
        self._search = search
        self._searching: asyncio.Task[Located] | None = None
        self._doubted: set[bytes] = set()
        """Nodes that gave something wrong, or nothing: they are asked last from then on."""

    async def stream(self, start: int = 0, stop: int | None = None) -> AsyncGenerator[Buffer]:
        """Yield the bytes from `start` up to `stop`, or to the end, in order.

        What is yielded is not used again here: views may be kept. The first piece comes when
        all of its segment is there, so that most faults show before it; from then on
        each column comes as soon as it is there, and is not asked for before all but a
        segment of what stands before it was taken. What a reader that went away was given
        last comes first, without asking hosts.

        Raises:
            ArgumentInvalid: not a range within the object.
            ShardsInsufficient: fewer than k shards of a segment can be fetched.
            RecordInvalid: a segment was sealed otherwise than its manifest says.
        """
        end = self.size_bytes if stop is None else stop
        if not 0 <= start <= end <= self.size_bytes:
            raise ArgumentInvalid(
                f"bytes {start} to {end} do not lie within an object of {self.size_bytes} bytes"
            )
        if start == end:
            return
        clock = self._client.clock
        began_ms = clock.monotonic_ms()
        kept = self._read_ahead.take(self._content_key, start, clock.monotonic_ms())
        cached = self._read_ahead.begin(self._content_key, start)
        taken = False
        try:
            for piece in kept:
                view = memoryview(piece)[: end - cached.stop]
                if len(view):
                    self._read_ahead.give(cached, view)
                    yield view
            if cached.stop < end:
                async with aclosing(self._fetched(cached.stop, end)) as fetched:
                    async for piece in fetched:
                        self._read_ahead.give(cached, piece)
                        yield piece
            taken = True
        finally:
            now_ms = clock.monotonic_ms()
            self._read_ahead.end(cached, now_ms, taken=taken)
            if (size := cached.stop - start) > 0:
                duration_ms = now_ms - began_ms
                self._client.log.info("storage.got", size_bytes=size, duration_ms=duration_ms)

    async def whole(self) -> bytes:
        """Return all of it.

        Raises:
            XscError: as `stream`.
        """
        return b"".join([piece async for piece in self.stream()])

    async def _fetched(self, start: int, end: int) -> AsyncGenerator[Buffer]:
        """Yield bytes that come from hosts."""
        size = self._located.manifest.segment_bytes
        budget = ByteBudget(size)
        following = start // size
        ahead: deque[_Coming] = deque()
        try:
            while following * size < end or ahead:
                while following * size < end and len(ahead) < SEGMENTS_BEGUN:
                    low = max(0, start - following * size)
                    high = min(size, end - following * size)
                    ahead.append(self._begin(following, low, high, budget))
                    following += 1
                if following - len(ahead) == start // size:
                    await ahead[0].whole()
                while (given := await ahead[0].next()) is not None:
                    piece, held_bytes = given
                    if len(piece):
                        yield piece
                    budget.free(held_bytes)
                ahead.popleft()
        finally:
            searching = [] if self._searching is None else [self._searching]
            self._searching = None
            await stop_all([*(coming.task for coming in ahead), *searching])

    def _begin(self, index: int, low: int, high: int, budget: ByteBudget) -> _Coming:
        """Begin to fetch bytes of one segment, as there is room for them."""
        manifest = self._located.manifest
        code = code_of(manifest)
        place = place_of(manifest, self._located.locate, index)
        coming = _Coming()
        whole = self._own_first or is_whole(low, high, place.length, code)
        if manifest.inline is None and whole:
            opener = Opener(self._content_key, manifest.nonces[index], manifest.tags[index], place)
            decoder = SegmentDecoder(opener, place, code, budget)
            coming.start(self._segment(index, (low, high), decoder, coming))
        else:
            ticket = budget.ticket(high - low)
            coming.start(self._part(index, low, high, ticket, coming))
        return coming

    async def _part(
        self, index: int, low: int, high: int, ticket: asyncio.Future[None], coming: _Coming
    ) -> None:
        """Fetch bytes of one segment, by the leaves that hold them."""
        await ticket
        manifest = self._located.manifest
        if manifest.inline is not None:
            coming.give(self._inline()[low:high], high - low)
            return
        code = code_of(manifest)
        length = place_of(manifest, self._located.locate, index).length
        pieces = pieces_of(low, high, length, code)
        leaves = await together(self._leaves(index, piece, code) for piece in pieces)
        nonce = manifest.nonces[index]
        plain = await self._client.executor.run(
            _decipher, self._content_key, nonce, low, pieces, leaves
        )
        coming.give(plain, high - low)

    async def _leaves(self, index: int, piece: Piece, code: Code) -> Buffer:
        """Return the verified leaves of a piece: from its host, or rebuilt where that fails.

        The host is raced by those of the other columns once it is late.
        """
        located, client = self._located, self._client
        ranked = in_order(
            client, located.sources, code.k, piece.span.size_bytes, doubted=self._doubted
        )
        got = await race(
            client,
            located.segment(index),
            ranked,
            span=piece.span,
            column=piece.column,
            more=self._more if self._search else None,
            doubted=self._doubted,
        )
        if piece.column in got:
            return got[piece.column]
        return await client.executor.run(rebuild_span, got, code, piece.column, piece.span)

    async def _more(self) -> list[Source]:
        """Ask all peers once what they hold: where the known holders do not give the object."""
        if self._searching is None:
            assert self._search is not None
            self._searching = asyncio.create_task(self._search(self._located))
        # One search for all that wait for it, also where the first of them needs it no more.
        self._located = await asyncio.shield(self._searching)
        code = code_of(self._located.manifest)
        return in_order(self._client, self._located.sources, code.k, doubted=self._doubted)

    def _inline(self) -> bytes:
        manifest = self._located.manifest
        assert manifest.inline is not None
        place = place_of(manifest, self._located.locate, 0)
        nonce, tag = manifest.nonces[0], manifest.tags[0]
        return segments.open_sealed(self._content_key, nonce, tag, place, manifest.inline)

    async def _segment(
        self, index: int, wanted: tuple[int, int], decoder: SegmentDecoder, coming: _Coming
    ) -> None:
        """Fetch all of a segment, and give each of its columns once those before it are given."""
        low, high = wanted
        begin = 0
        located, segment = self._located, self._located.segment(index)
        k, own = segment.code.k, self._client.own
        size = segment.shard_bytes
        ranked = in_order(self._client, located.sources, k, size, self._doubted)
        if self._own_first:
            ranked.sort(key=lambda source: source.node != own)
        firsts = first_of_each(ranked)[:k]
        # Of those that are asked, the one whose bytes are read first comes first.
        chosen = sorted(firsts, key=lambda source: source.column)
        rest = [source for source in ranked if source not in firsts]

        def arrived() -> None:
            nonlocal begin
            for piece in decoder.opened():
                view = memoryview(piece)[max(0, low - begin) : max(0, high - begin)]
                coming.give(view, len(piece))
                begin += len(piece)

        shards = await race(
            self._client,
            segment,
            [*chosen, *rest],
            take=decoder.take,
            tickets=decoder.tickets,
            arrived=arrived,
            more=self._more if self._search else None,
            doubted=self._doubted,
        )
        if not decoder.is_open:
            await self._client.executor.run(decoder.complete, shards)
        here = {source.column for source in located.sources if source.node == own}
        self.received_bytes += sum(
            len(data) for column, data in shards.items() if column not in here
        )
        arrived()
