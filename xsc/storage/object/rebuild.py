"""What must be built again when a node is gone, and the building itself.

Rebuilt shards are bit-identical to the lost ones, so roots and manifest stand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from xsc.base.merkle import root_of
from xsc.storage.object.erasure import ZFEC, Buffer, Code, Codec, StorageShard, decode, encode


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Build these columns of a segment from any k of those."""

    segment: int
    columns: tuple[int, ...]
    sources: tuple[int, ...]


def plan_rebuilds(
    columns: Sequence[bytes],
    lost: Collection[int],
    stored: Collection[int],
    gone: Collection[bytes],
) -> list[Rebuild]:
    """Return what to rebuild, segment by segment.

    Args:
        columns: the node of each column.
        lost: the columns that need a new place.
        stored: the segments that were stored completely.
        gone: nodes that nothing can be fetched from.
    """
    sources = tuple(
        column for column, node in enumerate(columns) if column not in lost and node not in gone
    )
    return [Rebuild(segment, tuple(sorted(lost)), sources) for segment in sorted(stored)]


def rebuild(
    shards: Mapping[int, Buffer],
    code: Code,
    length: int,
    columns: Sequence[int],
    *,
    codec: Codec = ZFEC,
) -> list[StorageShard]:
    """Return the wanted columns from any k verified shards of a segment of that length.

    Raises:
        ShardsInsufficient: fewer than k shards.
    """
    data = decode(shards, code, length, codec=codec)
    built = encode(data, code, columns=columns, codec=codec)
    return [
        StorageShard(column, shard, root_of(shard))
        for column, shard in zip(columns, built, strict=True)
    ]
