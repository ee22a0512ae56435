"""Reads every shard of an object and verifies it: what a deep check does.

Needs no read key: roots are in the manifest, nothing is deciphered.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from xsc.base.errors import XscError
from xsc.storage.held import Wanted
from xsc.storage.manifest import segments_of
from xsc.storage.reach import Reach
from xsc.storage.reading import Located, roots_of

SHARDS_IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class BadShard:
    """A shard that its host did not give whole."""

    segment: int
    column: int
    node: bytes
    reason: str


async def read_every_shard(reach: Reach, located: Located) -> tuple[int, list[BadShard]]:
    """Return the bytes that were read and verified, and the shards that could not be."""
    manifest, columns = located.manifest, located.placement.columns
    room = asyncio.Semaphore(SHARDS_IN_FLIGHT)
    read_bytes = 0
    bad: list[BadShard] = []

    async def one(segment: int, column: int, root: bytes) -> None:
        nonlocal read_bytes
        async with room:
            try:
                data = await reach.fetch(
                    columns[column],
                    located.locate,
                    manifest.generation,
                    Wanted(segment, column, root),
                )
            except XscError as fault:
                bad.append(BadShard(segment, column, columns[column], fault.message))
            else:
                read_bytes += len(data)

    if manifest.inline is None:
        for index in range(segments_of(manifest)):
            await asyncio.gather(
                *(one(index, column, root) for column, root in enumerate(roots_of(manifest, index)))
            )
    return read_bytes, sorted(bad, key=lambda fault: (fault.segment, fault.column))
