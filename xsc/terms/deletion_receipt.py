"""A host's word that it deleted what a customer ordered it to."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xsc.identity.envelope import Count, Id32, Record


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
