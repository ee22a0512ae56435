"""Whether the receipt of a host says what was sent to it, or deleted there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xsc.base import errors, limits
from xsc.base.encoding import Value, decode, encode
from xsc.base.fields import take_bytes, take_int
from xsc.identity.envelope import Signed, open_body
from xsc.storage.object.erasure import StorageShard
from xsc.storage.object.manifest import Manifest, code_of, root_at, segments_of
from xsc.storage.object.segment import length_of
from xsc.terms.storage_receipt import DeletionOrder, DeletionReceipt, HeldShard, StorageReceipt


def named(shards: Iterable[tuple[int, StorageShard]]) -> tuple[HeldShard, ...]:
    """Return (segment, shard) as receipts name them, in the same order."""
    return tuple(
        HeldShard(segment=segment, column=shard.column, size_bytes=len(shard.data), root=shard.root)
        for segment, shard in shards
    )


def receipt_fault(
    receipt: StorageReceipt, expected: StorageReceipt, *, some: bool = False
) -> str | None:
    """Return the first thing that a receipt says otherwise than expected, or None.

    When it was stored is the host's to say; with `some`, also which of the shards are there.
    """
    for name in ("host", "customer", "lease_id", "locate", "generation", "manifest"):
        if getattr(receipt, name) != getattr(expected, name):
            return f"the receipt names another {name.replace('_', ' ')}"
    sent = expected.shards
    if some:
        sent = tuple(dict.fromkeys(shard for shard in receipt.shards if shard in sent))
    if len(receipt.shards) != len(sent):
        return f"the receipt names {len(receipt.shards)} shards of {len(sent)} sent"
    for held, shard in zip(receipt.shards, sent, strict=True):
        if held != shard:
            return f"the receipt is wrong about segment {shard.segment}, column {shard.column}"
    return None


def check_receipt(
    answer: Mapping[str, Value], expected: StorageReceipt, network: bytes, *, some: bool = False
) -> tuple[HeldShard, ...]:
    """Return the shards that an answer confirms by the receipt that is expected.

    Args:
        answer: of the host.
        expected: all that it may say; `stored_ms` is the host's to say.
        network: of this node.
        some: it may leave shards out.

    Raises:
        TooLarge, RecordInvalid: malformed.
        SignatureInvalid: not signed by the host.
        ReceiptInvalid: it says something else than expected.
    """
    body = open_body(
        take_bytes(answer, "receipt"), StorageReceipt.KIND, network=network, author=expected.host
    )
    value = decode(body)
    stored_ms = take_int(value if isinstance(value, dict) else {}, "stored_ms")
    # One byte string stands for each value, so comparing bytes saves building the record.
    if body == encode({**expected.to_value(), "stored_ms": stored_ms}):
        return expected.shards
    receipt = StorageReceipt.from_bytes(body)
    fault = receipt_fault(receipt, expected, some=some)
    if fault is not None or not some:
        raise errors.ReceiptInvalid(fault or "the receipt is not what it must be")
    return receipt.shards


def order_fault(order: DeletionOrder, *, host: bytes, customer: bytes) -> str | None:
    """Return the first rule that a deletion order breaks, or None."""
    if (order.customer, order.host) != (customer, host):
        return "the deletion order is of another customer or host"
    if list(order.columns) != sorted(set(order.columns)):
        return "the deletion order does not name its columns in order, each once"
    if order.columns and order.final:
        return "a deletion order that is final names no columns"
    return None


def deletion_fault(
    receipt: DeletionReceipt, order: Signed[DeletionOrder], *, now_ms: int
) -> str | None:
    """Return the first thing that a deletion receipt says otherwise than expected, or None.

    What it freed is the host's to say: the customer compares it with what it paid for.
    """
    for name in ("host", "customer", "locate"):
        if getattr(receipt, name) != getattr(order.record, name):
            return f"the deletion receipt names another {name}"
    if receipt.order != order.id:
        return "the deletion receipt is for another order"
    if len({item.lease_id for item in receipt.freed}) != len(receipt.freed):
        return "the deletion receipt names a lease twice"
    if abs(receipt.deleted_ms - now_ms) > limits.REQUEST_WINDOW_MS:
        return "the deletion receipt is of another time"
    return None


def shards_of(manifest: Manifest, column: int) -> tuple[HeldShard, ...]:
    """Return the shards of a column, by segment."""
    code = code_of(manifest)
    return tuple(
        HeldShard(
            segment=index,
            column=column,
            size_bytes=code.shard_bytes(length_of(index, manifest.size_bytes)),
            root=root_at(manifest, index, column),
        )
        for index in range(segments_of(manifest))
    )
