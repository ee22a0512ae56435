"""Converts what hosts hold between its form in records and its form in the code."""

from __future__ import annotations

from collections.abc import Iterable

from xsc.storage.object.inventory import HeldAt
from xsc.storage.transfer.put import Held


def held_at(held: Iterable[Held]) -> tuple[HeldAt, ...]:
    """Return what is held, as records have it."""
    return tuple(
        HeldAt(node=item.node, lease_id=item.lease_id, size_bytes=item.size_bytes) for item in held
    )


def held_of(records: Iterable[HeldAt]) -> tuple[Held, ...]:
    """Return what is held, from a record."""
    return tuple(Held(item.node, item.lease_id, item.size_bytes) for item in records)
