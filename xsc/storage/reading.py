"""Reads an object: k verified shards a segment, decoded and decrypted in order.

Touches hosts through `Reach`. A wrong shard never reaches the decoder, and a
segment that does not open never reaches the reader. Memory is bounded by the
segments that are fetched ahead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from xsc.base.errors import ArgumentInvalid
from xsc.storage import segment as segments
from xsc.storage.capability import ReadCapability
from xsc.storage.erasure import Buffer, Code, decode
from xsc.storage.manifest import Manifest, code_of, place_of, segments_of
from xsc.storage.placement import Placement
from xsc.storage.reach import Reach, Source, in_order, race, stop_all
from xsc.storage.segment import Place


@dataclass(frozen=True, slots=True)
class Located:
    """An object that was found, and everything about it verified."""

    locate: bytes
    manifest: Manifest
    sealed: bytes
    placement: Placement
    placement_raw: bytes


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
) -> bytes:
    nonce, tag = seal
    ciphertext = decode(shards, code, place.length)
    return segments.open_sealed(content_key, nonce, tag, place, ciphertext)


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

    async def stream(self, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` up to `stop`, or to the end, in order.

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
        ahead: deque[asyncio.Task[bytes]] = deque()
        try:
            for index in range(start // size, last + 1):
                while following <= last and len(ahead) < self._segments_in_flight:
                    ahead.append(asyncio.create_task(self._segment(following)))
                    following += 1
                data = await ahead[0]
                ahead.popleft()
                low, high = max(0, start - index * size), min(len(data), end - index * size)
                yield data if (low, high) == (0, len(data)) else data[low:high]
        finally:
            await stop_all(ahead)

    async def _segment(self, index: int) -> bytes:
        located, manifest = self._located, self._located.manifest
        place = place_of(manifest, located.locate, index)
        nonce, tag = manifest.nonces[index], manifest.tags[index]
        if manifest.inline is not None:
            return segments.open_sealed(self._content_key, nonce, tag, place, manifest.inline)
        assert index < segments_of(manifest)
        sources = [Source(column, node) for column, node in enumerate(located.placement.columns)]
        shards = await race(
            self._reach,
            locate=located.locate,
            generation=manifest.generation,
            segment=index,
            roots=roots_of(manifest, index),
            sources=in_order(self._reach, sources, manifest.k),
            k=manifest.k,
        )
        return await self._reach.executor.run(
            _join, shards, code_of(manifest), self._content_key, (nonce, tag), place
        )
