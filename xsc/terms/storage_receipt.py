"""A host's word that it holds shards, given only after they were synced to its disk."""

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
