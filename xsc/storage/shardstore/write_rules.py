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
) -> WritePlan:
    """Return what a write of some bodies stores.

    Args:
        bodies: of one object and customer.
        held: the entries that the index has of them, by index key.
        damaged: the sequences of bodies that are damaged.
        free_bytes: what they may take.
        capacity_bytes: of the store, for the error.

    Raises:
        ShardMismatch: another shard or manifest is held in that place.
        SpaceExhausted: they need more than is free.
    """
    fresh: list[Body] = []
    replaced: list[IndexEntry] = []
    for body in bodies:
        old = held.get(body.index_key)
        if old is not None:
            if body.proof != old.proof:
                what = "shard" if isinstance(body, ShardBody) else "manifest"
                raise ShardMismatch(f"another {what} is held in that place already")
            if old.sequence not in damaged:
                continue
            replaced.append(old)
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
