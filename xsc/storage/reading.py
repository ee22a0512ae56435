"""Reads an object: k verified shards a segment, decoded and decrypted in order.

Touches hosts through `Reach`. A wrong shard never reaches the decoder, and a
segment that does not open never reaches the reader. Of a segment that is read in
part, only the leaves that hold it are fetched, each held against the roots of the
manifest. Memory is bounded by the segments that are fetched ahead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from xsc.base.errors import ArgumentInvalid
from xsc.storage import segment as segments
from xsc.storage.capability import ReadCapability
from xsc.storage.erasure import Buffer, Code, decode_rows
from xsc.storage.held import Wanted
from xsc.storage.manifest import Manifest, code_of, place_of, segments_of
from xsc.storage.placement import Placement
from xsc.storage.ranges import Piece, is_whole, pieces_of, rebuild_span
from xsc.storage.reach import Reach, Source, first_of, in_order, race, stop_all, together
from xsc.storage.segment import Place


@dataclass(frozen=True, slots=True)
class Located:
    """An object that was found, and everything about it verified."""

    locate: bytes
    manifest: Manifest
    sealed: bytes
    placement: Placement
    placement_raw: bytes
    rank: int
    """By which placements are ordered (`xsc.storage.delegation`)."""


def roots_of(manifest: Manifest, index: int) -> tuple[bytes, ...]:
    """Return the roots of one segment, in order of columns."""
    n = manifest.k + manifest.m
    return manifest.roots[index * n : (index + 1) * n]


def _join(
    shards: Mapping[int, Buffer],
    code: Code,
    content_key: bytes,
    seal: tuple[bytes, bytes],
    place: Place,
) -> Buffer:
    nonce, tag = seal
    pieces = decode_rows(shards, code, place.length)
    return segments.open_pieces(content_key, nonce, tag, place, pieces)


def _decipher(
    content_key: bytes,
    nonce: bytes,
    start: int,
    pieces: Sequence[Piece],
    leaves: Sequence[Buffer],
) -> bytes:
    plain = []
    for piece, data in zip(pieces, leaves, strict=True):
        wanted = memoryview(data)[piece.low : piece.high]
        plain.append(segments.decipher_at(content_key, nonce, start, wanted))
        start += len(wanted)
    return b"".join(plain)


class ObjectReader:
    """An object that can be read, from the start or from anywhere in it."""

    def __init__(
        self,
        reach: Reach,
        located: Located,
        capability: ReadCapability,
        *,
        name: str | None,
        segments_in_flight: int,
    ) -> None:
        self.name = name
        """The name that this node stored it under; None where another node did."""
        self.size_bytes = located.manifest.size_bytes
        self._reach = reach
        self._located = located
        self._content_key = capability.content_key
        self._segments_in_flight = segments_in_flight

    async def stream(self, start: int = 0, stop: int | None = None) -> AsyncIterator[Buffer]:
        """Yield the bytes from `start` up to `stop`, or to the end, in order.

        What is yielded is not used again here: views may be kept.

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
        manifest = self._located.manifest
        size = manifest.segment_bytes
        last = (end - 1) // size
        following = start // size
        ahead: deque[asyncio.Task[Buffer]] = deque()
        try:
            while following <= last or ahead:
                while following <= last and len(ahead) < self._segments_in_flight:
                    low = max(0, start - following * size)
                    high = min(size, end - following * size)
                    ahead.append(asyncio.create_task(self._part(following, low, high)))
                    following += 1
                data = await ahead[0]
                ahead.popleft()
                yield data
        finally:
            await stop_all(ahead)

    async def _part(self, index: int, low: int, high: int) -> Buffer:
        """Return bytes of one segment: of the whole of it where all its leaves are needed."""
        manifest = self._located.manifest
        code = code_of(manifest)
        length = place_of(manifest, self._located.locate, index).length
        if manifest.inline is not None or is_whole(low, high, length, code):
            data = await self._segment(index)
            return data if (low, high) == (0, len(data)) else data[low:high]
        pieces = pieces_of(low, high, length, code)
        leaves = await together(self._leaves(index, piece, code) for piece in pieces)
        nonce = manifest.nonces[index]
        return await self._reach.executor.run(
            _decipher, self._content_key, nonce, low, pieces, leaves
        )

    async def _leaves(self, index: int, piece: Piece, code: Code) -> Buffer:
        """Return the verified leaves of a piece: from its host, or rebuilt where that fails.

        The host is raced by those of the other columns once it is late.
        """
        located, manifest, reach = self._located, self._located.manifest, self._reach
        roots = roots_of(manifest, index)
        columns = located.placement.columns
        host = columns[piece.column]
        want = Wanted(index, piece.column, roots[piece.column], piece.span)

        async def ask() -> Buffer:
            return await reach.fetch(host, located.locate, manifest.generation, want)

        async def rebuild() -> Buffer:
            others = [Source(column, node) for column, node in enumerate(columns)]
            del others[piece.column]
            got = await race(
                reach,
                locate=located.locate,
                generation=manifest.generation,
                segment=index,
                roots=roots,
                sources=in_order(reach, others, code.k, piece.span.size_bytes),
                k=code.k,
                span=piece.span,
            )
            return await reach.executor.run(rebuild_span, got, code, piece.column, piece.span)

        size = piece.span.size_bytes
        direct = reach.is_up(host) and not reach.is_slow(host)
        return await first_of(
            reach.clock,
            [ask, rebuild] if direct else [rebuild, ask],
            reach.late_ms(host, size),
            lambda elapsed_ms: reach.note_late(host, size, elapsed_ms) if direct else None,
        )

    async def _segment(self, index: int) -> Buffer:
        located, manifest = self._located, self._located.manifest
        if manifest.inline is not None:
            nonce, tag = manifest.nonces[index], manifest.tags[index]
            place = place_of(manifest, located.locate, index)
            return segments.open_sealed(self._content_key, nonce, tag, place, manifest.inline)
        data, _ = await read_segment(self._reach, located, self._content_key, index)
        return data


async def read_segment(
    reach: Reach, located: Located, content_key: bytes, index: int, *, own_first: bool = False
) -> tuple[Buffer, int]:
    """Return one segment that lies as shards, and how many bytes of them came from others.

    With `own_first`, shards of this node are taken also where they are parity.
    """
    manifest = located.manifest
    assert index < segments_of(manifest)
    columns = located.placement.columns
    code = code_of(manifest)
    place = place_of(manifest, located.locate, index)
    size = code.shard_bytes(place.length)
    listed = [Source(column, node) for column, node in enumerate(columns)]
    sources = in_order(reach, listed, manifest.k, size)
    if own_first:
        sources.sort(key=lambda source: source.node != reach.own)
    shards = await race(
        reach,
        locate=located.locate,
        generation=manifest.generation,
        segment=index,
        roots=roots_of(manifest, index),
        sources=sources,
        k=manifest.k,
        size_bytes=size,
    )
    received = sum(len(data) for column, data in shards.items() if columns[column] != reach.own)
    seal = manifest.nonces[index], manifest.tags[index]
    data = await reach.executor.run(_join, shards, code, content_key, seal, place)
    return data, received


async def read_whole(
    reach: Reach, located: Located, content_key: bytes, segments_in_flight: int
) -> tuple[bytes, int]:
    """Return an object that lies as shards, its own first, and how many bytes came from others.

    Raises:
        ShardsInsufficient, RecordInvalid: as `ObjectReader.stream`.
    """
    ahead: deque[asyncio.Task[tuple[Buffer, int]]] = deque()
    found: list[Buffer] = []
    received = following = 0
    try:
        while following < segments_of(located.manifest) or ahead:
            while following < segments_of(located.manifest) and len(ahead) < segments_in_flight:
                reading = read_segment(reach, located, content_key, following, own_first=True)
                ahead.append(asyncio.create_task(reading))
                following += 1
            data, fetched = await ahead[0]
            ahead.popleft()
            found.append(data)
            received += fetched
    finally:
        await stop_all(ahead)
    return b"".join(found), received
