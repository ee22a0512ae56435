"""Decides what of a write is stored: rules over entries, no disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from xsc.base.errors import ShardMismatch, SpaceExhausted
from xsc.base.keyvalue import Change
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Body, IndexEntry, ShardBody


@dataclass(slots=True, eq=False)
class WritePlan:
    """What one write stores."""

    fresh: Sequence[Body] = ()
    """Bodies that are written: not held yet, or held and damaged."""
    replaced: Sequence[IndexEntry] = ()
    """Damaged bodies that they replace."""
    growth: Counter[bytes] = field(default_factory=Counter)
    """How many bytes more are held under each lease afterwards."""


def plan_write(
    bodies: Sequence[Body],
    held: Mapping[bytes, IndexEntry],
    damaged: Container[int],
    *,
    free_bytes: int,
    capacity_bytes: int,
    renews: bytes | None = None,
) -> WritePlan:
    """Return what a write of some bodies stores.

    Args:
        bodies: of one object and customer.
        held: the entries that the index has of them, by index key.
        damaged: the sequences of bodies that are damaged.
        free_bytes: what they may take.
        capacity_bytes: of the store, for the error.
        renews: the lease that they lay under; what is held no more, or under another, is not
            stored. None: they are new.

    Raises:
        ShardMismatch: another shard or manifest is held in that place.
        SpaceExhausted: they need more than is free.
    """
    fresh: list[Body] = []
    replaced: list[IndexEntry] = []
    for body in bodies:
        old = held.get(body.index_key)
        if old is not None:
            if renews == old.lease_id and body.proof == old.proof:
                fresh.append(body)
                replaced.append(old)
            if renews is not None:
                continue
            if body.proof != old.proof:
                what = "shard" if isinstance(body, ShardBody) else "manifest"
                raise ShardMismatch(f"another {what} is held in that place already")
            if old.sequence not in damaged:
                continue
            replaced.append(old)
        elif renews is not None:
            continue
        fresh.append(body)
    plan = WritePlan(fresh, replaced)
    for body in fresh:
        plan.growth[body.lease_id] += body.held_bytes
    for old in replaced:
        plan.growth[old.lease_id] -= old.held_bytes
    total = plan.growth.total()
    if total > free_bytes:
        raise SpaceExhausted(
            f"no room for {total} bytes: {free_bytes} of {capacity_bytes} are free",
            hint="free space, raise `storage_capacity`, or add peers",
        )
    return plan


def fitting(
    held: Sequence[tuple[bytes, IndexEntry]], lease_id: bytes, room_bytes: int, most_bytes: int
) -> tuple[list[tuple[bytes, IndexEntry]], int]:
    """Return which entries of an object go over in one write, and how many were looked at.

    Args:
        held: the entries, in order.
        lease_id: that they lie under.
        room_bytes: under the lease that renews it: what does not fit there stays.
        most_bytes: of the write; the last body may pass it.
    """
    chosen: list[tuple[bytes, IndexEntry]] = []
    size = 0
    for number, (key, entry) in enumerate(held):
        if entry.lease_id == lease_id and entry.held_bytes <= room_bytes - size:
            if size >= most_bytes:
                return chosen, number
            chosen.append((key, entry))
            size += entry.held_bytes
    return chosen, len(held)


def changes_of(
    fresh: Sequence[Body], sequences: Sequence[int], replaced: Sequence[IndexEntry]
) -> list[Change]:
    """Return the changes that write bodies under their sequences and drop those replaced."""
    changes: list[Change] = [
        (formats.sequenced(formats.BODIES, sequence), formats.encode_body(body))
        for body, sequence in zip(fresh, sequences, strict=True)
    ]
    for old in replaced:
        changes.append((formats.sequenced(formats.BODIES, old.sequence), None))
        changes.append((formats.sequenced(formats.DAMAGED, old.sequence), None))
    return changes
