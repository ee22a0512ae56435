"""What hosts and customers sign of stored bytes: receipts, and orders to delete."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xsc.identity.envelope import Count, Id32, Record


class HeldShard(Record):
    """One shard that a receipt speaks of."""

    segment: Count
    column: Annotated[int, Field(ge=0, lt=256)]
    size_bytes: Count
    root: Id32
    """Merkle root of the shard (`xsc.base.merkle`)."""


class StorageReceipt(Record):
    """Signed by the host. Names everything that one request stored."""

    host: Id32
    customer: Id32
    lease_id: Id32
    locate: Id32
    """The object's locate id."""
    generation: Count
    """The encoding generation of the shards."""
    shards: Annotated[tuple[HeldShard, ...], Field(max_length=1024)]
    manifest: Id32 | None
    """SHA-256 of the sealed manifest, where the request carried it."""
    stored_ms: Count


class DeletionOrder(Record):
    """Signed by the customer: the host may delete what that customer stored of an object.

    A host that leaves keeps the orders as its proof that nobody needs what it held.
    """

    customer: Id32
    host: Id32
    locate: Id32
    """The object's locate id."""
    columns: Annotated[tuple[Annotated[int, Field(ge=0, lt=256)], ...], Field(max_length=256)]
    """The columns to delete; none named: all that the customer stored under the locate id."""
    final: bool
    """Whether a put of that customer and object that comes later is refused, too."""
    ordered_ms: Count


class Freed(Record):
    """What one lease got back."""

    lease_id: Id32
    size_bytes: Count


class DeletionReceipt(Record):
    """Signed by the host once the deletion that was ordered is synced.

    The host held nothing before where `freed` is empty: deleting twice is once.
    """

    host: Id32
    customer: Id32
    locate: Id32
    """The object's locate id."""
    order: Id32
    """Record id of the customer's `DeletionOrder`: what is gone."""
    freed: Annotated[tuple[Freed, ...], Field(max_length=1024)]
    deleted_ms: Count

    @property
    def freed_bytes(self) -> int:
        """Bytes freed under all leases."""
        return sum(item.size_bytes for item in self.freed)
