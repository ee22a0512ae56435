"""Whether the receipt of a host says what was sent to it, or deleted there."""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base.limits import REQUEST_WINDOW_MS
from xsc.storage.erasure import StorageShard
from xsc.terms.deletion_receipt import DeletionReceipt
from xsc.terms.storage_receipt import HeldShard, StorageReceipt


def expected_receipt(
    *,
    host: bytes,
    customer: bytes,
    lease_id: bytes,
    locate: bytes,
    generation: int,
    shards: Sequence[tuple[int, StorageShard]],
    manifest: bytes | None,
    placement: bytes | None,
    stored_ms: int,
) -> StorageReceipt:
    """Return the receipt for (segment, shard) in the order in which they were sent."""
    return StorageReceipt(
        host=host,
        customer=customer,
        lease_id=lease_id,
        locate=locate,
        generation=generation,
        shards=tuple(
            HeldShard(
                segment=segment, column=shard.column, size_bytes=len(shard.data), root=shard.root
            )
            for segment, shard in shards
        ),
        manifest=manifest,
        placement=placement,
        stored_ms=stored_ms,
    )


def receipt_fault(receipt: StorageReceipt, expected: StorageReceipt) -> str | None:
    """Return the first thing that a receipt says otherwise than expected, or None.

    When it was stored is the host's to say.
    """
    for name in ("host", "customer", "lease_id", "locate", "generation"):
        if getattr(receipt, name) != getattr(expected, name):
            return f"the receipt names another {name.replace('_', ' ')}"
    if len(receipt.shards) != len(expected.shards):
        return f"the receipt names {len(receipt.shards)} shards of {len(expected.shards)} sent"
    for held, sent in zip(receipt.shards, expected.shards, strict=True):
        if held != sent:
            return f"the receipt is wrong about segment {sent.segment}, column {sent.column}"
    if receipt.manifest != expected.manifest:
        return "the receipt names another manifest"
    if receipt.placement != expected.placement:
        return "the receipt names another placement"
    return None


def deletion_fault(
    receipt: DeletionReceipt, *, host: bytes, customer: bytes, locate: bytes, now_ms: int
) -> str | None:
    """Return the first thing that a deletion receipt says otherwise than expected, or None.

    What it freed is the host's to say: the customer compares it with what it paid for.
    """
    expected = {"host": host, "customer": customer, "locate": locate}
    for name, value in expected.items():
        if getattr(receipt, name) != value:
            return f"the deletion receipt names another {name}"
    if len({item.lease_id for item in receipt.freed}) != len(receipt.freed):
        return "the deletion receipt names a lease twice"
    if abs(receipt.deleted_ms - now_ms) > REQUEST_WINDOW_MS:
        return "the deletion receipt is of another time"
    return None
