"""What is asked of a host about what it holds, and what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from xsc.base import errors, ids, limits, merkle
from xsc.storage.object.erasure import Buffer, Code, StorageShard
from xsc.storage.object.manifest import (
    Manifest,
    column_digest,
    expected_digest,
    root_at,
    segments_of,
)
from xsc.storage.object.segment import Span

HeldState: TypeAlias = Literal["ok", "missing", "corrupt"]


PLACE_BYTES = 4 + 1 + ids.ID_BYTES
"""Segment, column and customer of a shard, as hosts order them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A shard that somebody asks for, or some of its leaves."""

    segment: int
    column: int
    root: bytes
    span: Span | None = None
    """None for the whole shard."""
    size_bytes: int = limits.SEGMENT_BYTES
    """Of the whole shard; a host gives none that is larger."""


@dataclass(frozen=True, slots=True)
class SegmentShards:
    """What the shards of one segment must be."""

    locate: bytes
    code: Code
    index: int
    length: int
    roots: Sequence[bytes]
    """By column."""

    @property
    def shard_bytes(self) -> int:
        """The size of each shard."""
        return self.code.shard_bytes(self.length)

    def wanted(self, column: int, span: Span | None = None) -> Wanted:
        """Return how one shard, or some of its leaves, is asked for."""
        return Wanted(self.index, column, self.roots[column], span, self.shard_bytes)


@dataclass(frozen=True, slots=True)
class FoundShard:
    """What became of it: `data` is there exactly where the state is "ok"."""

    state: HeldState
    data: Buffer | None = None
    path: tuple[bytes, ...] | None = None
    """What proves the leaves, where such were asked for and not the whole shard."""


def cut_found(data: Buffer, root: bytes, span: Span | None) -> FoundShard | None:
    """Return a shard, or some of its leaves and their proof; None where its root is another."""
    hashes = merkle.leaf_hashes(data)
    if merkle.root_from(hashes, len(data)) != root:
        return None
    if span is None:
        return FoundShard("ok", data)
    if span.shard_bytes != len(data):
        return FoundShard("missing")
    start = span.first * limits.LEAF_BYTES
    # A copy: a view would keep all of the shard in memory until the answer is read.
    leaves = bytes(memoryview(data)[start : start + span.size_bytes])
    return FoundShard("ok", leaves, tuple(merkle.prove_span(hashes, span.first, span.stop)))


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
            raise errors.ShardsInsufficient(
                f"segment {want.segment}, column {want.column} is {item.state} here"
            )
        shards.append((want.segment, StorageShard(want.column, item.data, want.root)))
    return shards


@dataclass(slots=True)
class _Column:
    """What the pages so far say of one column of a customer."""

    segments: int = 0
    shown: int = 0
    """Segments of those that were shown with the roots that they must have."""
    damaged: int = 0
    bad: tuple[int, ...] = ()
    ends_ms: int | None = None


def _behind(place: bytes, item: HeldColumn) -> int:
    """Return the first segment whose shard of a customer's column lies behind a place."""
    if not place:
        return 0
    return int.from_bytes(place[:4], "big") + (bytes([item.column]) + item.customer <= place[4:])


class InventoryPages:
    """What the pages of one stat say together, as they come."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._segments = segments_of(manifest)
        self._first: HeldObject | None = None
        self._after = b""
        self._found: dict[tuple[bytes, int], _Column] = {}
        self._sizes: Counter[bytes] | None = Counter()

    def add(self, page: HeldObject) -> bytes:
        """Take the next page; return the place behind which the one after it begins, or nothing.

        Raises:
            RecordInvalid: it goes backwards, or tells of more columns than one answer may.
        """
        if page.until and page.until <= self._after:
            raise errors.RecordInvalid("what a host says that it holds goes backwards")
        if self._first is None:
            self._first = page
        for item in page.columns:
            start = _behind(self._after, item)
            stop = min(_behind(page.until, item) if page.until else self._segments, self._segments)
            self._add(item, range(start, stop))
        if len(self._found) > limits.COLUMNS_MAX:
            raise errors.RecordInvalid(
                f"a host tells of more than {limits.COLUMNS_MAX} columns of one object"
            )
        if page.mine is None:
            self._sizes = None
        elif self._sizes is not None:
            self._sizes.update(dict(page.mine))
        self._after = page.until
        return page.until

    def _add(self, item: HeldColumn, segments: range) -> None:
        """Add what a page says of a column, of which it must show these segments."""
        known = self._found.setdefault((item.customer, item.column), _Column())
        if item.column < self._manifest.k + self._manifest.m:
            roots = [(index, root_at(self._manifest, index, item.column)) for index in segments]
            if item.digest == column_digest(roots):
                known.shown += len(roots)
        known.segments += item.segments
        known.damaged += item.damaged
        known.bad = (known.bad + item.bad)[: limits.DAMAGED_TOLD_MAX]
        ends = [end for end in (known.ends_ms, item.ends_ms) if end is not None]
        known.ends_ms = min(ends, default=None)

    def whole(self) -> HeldObject:
        """Return all of it, once no page follows.

        A column of which every page showed what it must has the digest of a whole column, each
        other one that of none.
        """
        first = self._first
        assert first is not None
        if not first.until:
            return first
        columns = tuple(
            HeldColumn(
                customer,
                column,
                item.segments,
                expected_digest(self._manifest, column)
                if item.shown == item.segments == self._segments
                else bytes(ids.ID_BYTES),
                item.damaged,
                item.ends_ms,
                bad=item.bad,
            )
            for (customer, column), item in sorted(self._found.items())
        )
        mine = None if self._sizes is None else tuple(sorted(self._sizes.items()))
        return HeldObject(columns, first.record, first.records, mine=mine)
