"""The drain proof of a node that leaves, and its checks.

Each customer moves what it stored there and then orders its deletion (`DeletionOrder`).
The node keeps these orders. Its proof is one record that has them all, signed by the node itself.

Vectors: tests/vectors/leaving.json. Design: docs/design/storage-drain.md.
"""

from __future__ import annotations

from xsc.base.errors import ProofInvalid, RecordInvalid
from xsc.base.limits import MIB
from xsc.identity.envelope import Count, Record, Signed, open_signed
from xsc.terms.storage_receipt import DeletionOrder

DRAIN_PROOF_BYTES_MAX = 256 * MIB
"""Orders of about 600,000 objects."""


class DrainProof(Record):
    """Signed by the node that leaves: what its customers ordered, and what is still there."""

    orders: tuple[bytes, ...]
    """Signed deletion orders of customers."""
    released_bytes: Count
    """What was deleted since it began to leave."""
    left_objects: Count
    """Objects of which the node still holds something: nobody ordered their deletion."""
    said_ms: Count


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
