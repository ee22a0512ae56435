"""What is asked of a host about what it holds, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from xsc.base.errors import ShardsInsufficient
from xsc.base.ids import ID_BYTES
from xsc.base.limits import LEAF_BYTES, SEGMENT_BYTES
from xsc.base.merkle import leaf_count, leaf_hashes, prove_span, root_from
from xsc.identity.envelope import Count, Id32, Record
from xsc.storage.object.erasure import Buffer, StorageShard

HeldState: TypeAlias = Literal["ok", "missing", "corrupt"]


@dataclass(frozen=True, slots=True)
class Span:
    """Leaves of a shard, from `first` up to `stop`."""

    first: int
    stop: int
    shard_bytes: int
    """The size of the whole shard."""

    @property
    def size_bytes(self) -> int:
        """How many bytes they have together: the last leaf of a shard may be short."""
        return min(self.stop * LEAF_BYTES, self.shard_bytes) - self.first * LEAF_BYTES

    @property
    def is_whole(self) -> bool:
        """Whether these are all leaves of the shard."""
        return self.first == 0 and self.stop >= leaf_count(self.shard_bytes)


PLACE_BYTES = 4 + 1 + ID_BYTES
"""Segment, column and customer of a shard, as hosts order them."""


class HeldAt(Record):
    """A host of an object, and what it confirmed under which lease."""

    node: Id32
    lease_id: Id32
    size_bytes: Count


@dataclass(frozen=True, slots=True)
class Wanted:
    """A shard that somebody asks for, or some of its leaves."""

    segment: int
    column: int
    root: bytes
    span: Span | None = None
    """None for the whole shard."""
    size_bytes: int = SEGMENT_BYTES
    """Of the whole shard; a host gives none that is larger."""


@dataclass(frozen=True, slots=True)
class FoundShard:
    """What became of it: `data` is there exactly where the state is "ok"."""

    state: HeldState
    data: Buffer | None = None
    path: tuple[bytes, ...] | None = None
    """What proves the leaves, where such were asked for and not the whole shard."""


def cut_found(data: Buffer, root: bytes, span: Span | None) -> FoundShard | None:
    """Return a shard, or some of its leaves and their proof; None where its root is another."""
    hashes = leaf_hashes(data)
    if root_from(hashes, len(data)) != root:
        return None
    if span is None:
        return FoundShard("ok", data)
    if span.shard_bytes != len(data):
        return FoundShard("missing")
    start = span.first * LEAF_BYTES
    # A copy: a view would keep all of the shard in memory until the answer is read.
    leaves = bytes(memoryview(data)[start : start + span.size_bytes])
    return FoundShard("ok", leaves, tuple(prove_span(hashes, span.first, span.stop)))


@dataclass(frozen=True, slots=True)
class HeldColumn:
    """What a host holds of one column of an object, for one customer."""

    customer: bytes
    column: int
    segments: int
    digest: bytes
    damaged: int
    """How many of the segments are known not to have their root any more."""
    ends_ms: int | None = None
    """When the first lease under it ends; None: never, or it is not said."""
    leases: frozenset[bytes] = frozenset()
    """Known at the host alone."""
    bad: tuple[int, ...] = ()
    """Which segments these are: the first DAMAGED_TOLD_MAX of them."""


@dataclass(frozen=True, slots=True)
class HeldRecord:
    """The record of an object as a host keeps it for one customer."""

    customer: bytes
    ends_ms: int | None = None
    lease_id: bytes = b""
    """Known at the host alone."""


@dataclass(frozen=True, slots=True)
class HeldObject:
    """What a host holds of an object."""

    columns: tuple[HeldColumn, ...]
    record: HeldState
    records: tuple[HeldRecord, ...] = ()
    """By customer."""
    sizes: tuple[tuple[bytes, bytes, int], ...] = ()
    """Customer, lease, and the bytes that lie under it. Known at the host alone."""
    mine: tuple[tuple[bytes, int], ...] | None = None
    """The same for the one who asks: lease and bytes; None: the host does not say it."""
    until: bytes = b""
    """The place of the last shard that this page speaks of; empty where no page follows."""

    def sizes_of(self, customer: bytes) -> tuple[tuple[bytes, int], ...]:
        """Return the leases of a customer, and the bytes that lie under each."""
        return tuple((lease, size) for who, lease, size in self.sizes if who == customer)

    @property
    def ends_ms(self) -> int | None:
        """When the first of it is over that nobody keeps longer; None: never, or unknown."""
        last: dict[int, int | None] = {}
        whole = [(item.column, item.ends_ms) for item in self.columns]
        for place, end in whole or [(-1, item.ends_ms) for item in self.records]:
            before = last.get(place, 0)
            last[place] = None if end is None or before is None else max(before, end)
        return min((end for end in last.values() if end is not None), default=None)


@dataclass(frozen=True, slots=True)
class ColumnPresence:
    """What a host says that it holds of an object, by the roots that it was asked for."""

    columns: frozenset[int]
    record: bool
    """Whether it holds the sealed manifest."""


def whole_of(
    wanted: Sequence[Wanted], found: Sequence[FoundShard]
) -> list[tuple[int, StorageShard]]:
    """Return shards that were read from the own store.

    Raises:
        ShardsInsufficient: one of them is not there, or damaged.
    """
    shards = []
    for want, item in zip(wanted, found, strict=True):
        if item.data is None:
            raise ShardsInsufficient(
                f"segment {want.segment}, column {want.column} is {item.state} here"
            )
        shards.append((want.segment, StorageShard(want.column, item.data, want.root)))
    return shards
