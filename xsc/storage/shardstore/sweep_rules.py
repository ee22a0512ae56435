"""What a host may drop by itself: rules over leases, records and time.

A host deletes unasked in two cases only. A body whose lease has ended for longer
than the grace is dropped; what its customer owes plays no part. Shards of an
object of which no record came are leftovers of an upload that was given up, and
are dropped once the newest of them is old enough. Everything else stays.

Bodies carry no time. Their age follows from marks: at a known time, every body
so far had a sequence below the mark's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xsc.base.ids import ID_BYTES
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import IndexEntry


@dataclass(frozen=True, slots=True)
class Mark:
    """At `time_ms` all bodies had sequences below `sequence`."""

    time_ms: int
    sequence: int


def older_than(marks: Iterable[Mark], before_ms: int) -> int:
    """Return the sequence below which all bodies are from before a time; 0 where none is known."""
    return max((mark.sequence for mark in marks if mark.time_ms <= before_ms), default=0)


def needless(marks: Sequence[Mark], before_ms: int) -> list[Mark]:
    """Return the marks that no later question can need: all but the newest of the old ones."""
    old = sorted((mark for mark in marks if mark.time_ms <= before_ms), key=lambda m: m.time_ms)
    return old[:-1]


def ended(ends_ms: Mapping[bytes, int], now_ms: int, grace_ms: int) -> frozenset[bytes]:
    """Return the leases whose bodies may be dropped: over for longer than the grace."""
    return frozenset(lease for lease, end_ms in ends_ms.items() if end_ms + grace_ms < now_ms)


@dataclass(frozen=True, slots=True)
class Owner:
    """A customer's part of an object."""

    locate: bytes
    customer: bytes


def owner_of(key: bytes) -> Owner:
    """Return whose body stands under a key of the index."""
    return Owner(key[1 : 1 + ID_BYTES], key[-ID_BYTES:])


def under_ended(
    entries: Iterable[tuple[bytes, IndexEntry]], leases: frozenset[bytes]
) -> dict[Owner, None]:
    """Return who has bodies under leases that are over, in order and each once."""
    return {owner_of(key): None for key, entry in entries if entry.lease_id in leases}


def newest_of(entries: Iterable[tuple[bytes, IndexEntry]], newest: dict[Owner, int]) -> None:
    """Add to `newest` the highest sequence of every owner's shards."""
    for key, entry in entries:
        if key.startswith(formats.SHARDS):
            owner = owner_of(key)
            newest[owner] = max(newest.get(owner, 0), entry.sequence)
