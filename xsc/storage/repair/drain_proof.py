"""The drain proof of a node that leaves, and its checks.

Each customer moves what it stored there and then orders its deletion (`DeletionOrder`).
The node keeps these orders. Its proof is one record that has them all, signed by the node itself.

Vectors: tests/vectors/leaving.json. Design: docs/design/storage-drain.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from xsc.base.errors import ProofInvalid, RecordInvalid
from xsc.base.limits import MIB
from xsc.identity.envelope import Count, Record, Signed, open_signed
from xsc.terms.storage_receipt import DeletionOrder

DRAIN_PROOF_BYTES_MAX = 256 * MIB
"""Orders of about 600,000 objects."""
DRAIN_PROOF_ORDERS_BYTES_MAX = DRAIN_PROOF_BYTES_MAX - 4_096
"""Of all orders in it, each with ORDER_HEAD_BYTES."""
ORDER_HEAD_BYTES = 5
"""What says how long an order is."""


class DrainProof(Record):
    """Signed by the node that leaves: what its customers ordered, and what is still there."""

    orders: tuple[bytes, ...]
    """Signed deletion orders of customers."""
    released_bytes: Count
    """What was deleted since it began to leave."""
    left_objects: Count
    """Objects of which the node still holds something: nobody ordered their deletion."""
    unlisted_orders: Count
    """Orders for which there was no room: each of their customers has its share in `orders`."""
    said_ms: Count


def listed(
    orders: Callable[[], Iterable[tuple[bytes, bytes]]],
    room_bytes: int = DRAIN_PROOF_ORDERS_BYTES_MAX,
) -> tuple[list[bytes], int]:
    """Return the orders that a proof lists, and how many it has no room for.

    Customers have equal shares of the room. What one does not need is there for the others.

    Args:
        orders: returns each order with its customer, every time.
        room_bytes: of all of them.
    """
    left = Counter[bytes]()
    for customer, raw in orders():
        left[customer] += len(raw) + ORDER_HEAD_BYTES
    for place, (customer, size) in enumerate(sorted(left.items(), key=lambda each: each[1])):
        left[customer] = min(size, room_bytes // (len(left) - place))
        room_bytes -= left[customer]
    found, unlisted = [], 0
    for customer, raw in orders():
        left[customer] -= len(raw) + ORDER_HEAD_BYTES
        if left[customer] >= 0:
            found.append(raw)
        else:
            unlisted += 1
    return found, unlisted


def check_proof(raw: bytes) -> tuple[Signed[DrainProof], list[Signed[DeletionOrder]]]:
    """Return what a proof proves: the record, and the orders in it.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: the proof or an order in it is none.
        ProofInvalid: an order is to another node, or is there twice.
    """
    proof = open_signed(raw, DrainProof, network=None, size_max=DRAIN_PROOF_BYTES_MAX)
    orders = [open_order(each, proof.network) for each in proof.record.orders]
    if {order.record.host for order in orders} - {proof.author}:
        raise ProofInvalid("an order of the proof is to another node")
    if len({order.id for order in orders}) != len(orders):
        raise ProofInvalid("the proof counts something twice")
    return proof, orders


def open_order(raw: bytes, network: bytes) -> Signed[DeletionOrder]:
    """Parse a deletion order and verify it.

    Args:
        raw: must be signed by the customer that it names.
        network: that it must belong to.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: it is none.
    """
    signed = open_signed(raw, DeletionOrder, network=network)
    if signed.record.customer != signed.author:
        raise RecordInvalid("the deletion order is signed by another node than its customer")
    return signed


def stuck_reason(
    *,
    recorded: bool,
    customer_said: str | None,
    is_up: bool,
    silent_ms: int | None,
    grace_ms: int,
) -> str:
    """Return why no customer is about to move an object from a node that leaves.

    Empty if its customer should be about to move it.

    Args:
        recorded: whether the object has a record here, so that its put has ended.
        customer_said: the reason that its customer gave.
        is_up: whether the customer answers.
        silent_ms: for how long the customer has been silent; None if it is no peer any more.
        grace_ms: of repair.
    """
    if not recorded:
        return "it belongs to a put that has not ended"
    if customer_said is not None:
        return customer_said
    if is_up:
        return ""
    if silent_ms is None:
        return "its owner is no peer of this node any more"
    if silent_ms < 3 * grace_ms:
        return ""
    return "the node that stored it is away, and nobody else can release it"
