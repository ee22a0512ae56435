"""Reads every shard of an object and verifies it: what a deep check does.

Needs no read key: roots are in the manifest, nothing is deciphered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from xsc.base import errors, ids
from xsc.base.progress import Watch, unwatched
from xsc.base.units import ceil_div
from xsc.storage.object.inventory import Wanted
from xsc.storage.object.manifest import hash_of, segments_of
from xsc.storage.transfer import get, host_client

SHARDS_IN_FLIGHT = 8


def is_silent(fault: errors.XscError) -> bool:
    """Say whether a host was not heard, instead of having said that it lacks something."""
    unheard = isinstance(fault, (errors.UnavailableError, errors.PeerUnknown, errors.RateLimited))
    return unheard and not isinstance(fault, errors.ShardsInsufficient)


async def unpaced(_size_bytes: int) -> None:
    """Wait for nothing."""


@dataclass(frozen=True, slots=True)
class BadShard:
    """A shard that its host did not give whole."""

    segment: int
    column: int
    node: bytes
    reason: str
    silent: bool = False
    """Whether the host said nothing, which is no loss yet."""


async def read_every_shard(
    client: host_client.HostClient,
    located: get.Located,
    columns: Sequence[bytes | None],
    pace: Callable[[int], Awaitable[None]] = unpaced,
    *,
    watch: Watch = unwatched,
) -> tuple[int, list[BadShard]]:
    """Return the bytes that were read and verified, and the shards that could not be.

    Args:
        client: the hosts.
        located: the object.
        columns: the node of each column; None where nobody is known to hold it.
        pace: waits for the turn of so many bytes.
        watch: of the bytes of all shards, also of those that cannot be read.
    """
    manifest = located.manifest
    room = asyncio.Semaphore(SHARDS_IN_FLIGHT)
    read_bytes = 0
    bad: list[BadShard] = []

    async def one(want: Wanted, node: bytes) -> None:
        nonlocal read_bytes
        async with room:
            try:
                data = await client.fetch(node, located.locate, manifest.generation, want)
            except errors.XscError as fault:
                where = want.segment, want.column, node
                bad.append(BadShard(*where, fault.message, is_silent(fault)))
            else:
                read_bytes += len(data)

    async def record(column: int, node: bytes) -> None:
        nonlocal read_bytes
        try:
            sealed = await client.find(node, located.locate, hash_of(located.sealed))
        except errors.XscError as fault:
            bad.append(BadShard(0, column, node, fault.message, is_silent(fault)))
            return
        if sealed is None or bytes(sealed) != located.sealed:
            bad.append(BadShard(0, column, node, f"{ids.short(node)} does not have the object"))
        else:
            read_bytes += len(sealed)

    listed = [(column, node) for column, node in enumerate(columns) if node is not None]
    if manifest.inline is not None:
        await asyncio.gather(*(record(column, node) for column, node in listed))
    with watch(ceil_div(manifest.size_bytes, manifest.k) * len(listed)) as progress:
        for index in range(segments_of(manifest)):
            shards = located.segment(index)
            size_bytes = shards.shard_bytes * len(listed)
            await pace(size_bytes)
            await asyncio.gather(*(one(shards.wanted(column), node) for column, node in listed))
            progress(size_bytes)
    return read_bytes, sorted(bad, key=lambda fault: (fault.segment, fault.column))
