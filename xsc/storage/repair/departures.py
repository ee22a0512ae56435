"""The drain proof of a node that leaves: its format and checks.

Each customer moves what it stored there and then orders its deletion (`DeletionOrder`).
The node keeps these orders. Its proof is a file of all of them, which ends with a drain
receipt, signed by the node itself:

    "XSC drain proof 1\n", then frames: tag (1 byte), length (4 bytes, big-endian), bytes
    tag "o": a signed deletion_order; tag "e": the signed drain receipt, which is the last frame

Vectors: tests/vectors/leaving.json. Design: docs/design/storage-drain.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from xsc.base.errors import LimitError, PeerError, ProofInvalid, RecordInvalid
from xsc.base.limits import RECORD_BYTES_MAX
from xsc.identity.envelope import Count, Id32, Record, Signed, open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.terms.storage_receipt import DeletionOrder

MAGIC: Final = b"XSC drain proof 1\n"
ORDER: Final = b"o"
END: Final = b"e"


class DrainReceipt(Record):
    """Signed by the node that leaves: what its proof lists, and what is still there."""

    KIND: ClassVar[str] = "drained"

    items: Count
    digest: Id32
    """SHA-256 of all that comes before this in the file."""
    objects: Count
    released_bytes: Count
    """What was deleted since it began to leave."""
    left_objects: Count
    """Objects of which the node still holds something: nobody ordered their deletion."""
    said_ms: Count


def open_order(raw: bytes, network: bytes | None) -> Signed[DeletionOrder]:
    """Parse a deletion order and verify it.

    Args:
        raw: must be signed by the customer that it names.
        network: that it must belong to; None accepts any.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: it is none.
    """
    signed = open_signed(raw, DeletionOrder, network=network)
    if signed.record.customer != signed.author:
        raise RecordInvalid("the deletion order is signed by another node than its customer")
    return signed


def _frame(tag: bytes, body: bytes) -> bytes:
    return tag + len(body).to_bytes(4, "big") + body


def write_proof(
    orders: Iterable[bytes],
    *,
    released_bytes: int,
    left_objects: int,
    said_ms: int,
    key: KeyPair,
    network: bytes,
) -> Iterator[bytes]:
    """Yield the pieces of a proof file.

    Args:
        orders: checked deletion orders to the node that leaves.
        released_bytes: what the receipt says of it, as of the next two.
        left_objects: see `DrainReceipt`.
        said_ms: the time.
        key: of the node that leaves.
        network: of that node.
    """
    hashed = hashlib.sha256(MAGIC)
    yield MAGIC
    items, objects = 0, set()
    for raw in orders:
        items += 1
        objects.add(open_order(raw, network).record.locate)
        framed = _frame(ORDER, raw)
        hashed.update(framed)
        yield framed
    drained = DrainReceipt(
        items=items,
        digest=hashed.digest(),
        objects=len(objects),
        released_bytes=released_bytes,
        left_objects=left_objects,
        said_ms=said_ms,
    )
    yield _frame(END, sign(drained, key, network).raw)


@dataclass(frozen=True, slots=True)
class CheckedProof:
    """A proof whose every byte was verified."""

    node: bytes
    drained: DrainReceipt
    customers: int
    """How many nodes ordered the deletions."""


def check_proof(read: Callable[[int], bytes]) -> CheckedProof:
    """Return what a proof file proves.

    Args:
        read: returns up to that many of the next bytes, fewer only at the end.

    Raises:
        ProofInvalid: names the first fault.
    """
    if read(len(MAGIC)) != MAGIC:
        raise ProofInvalid("this is no drain proof of a known version")
    hashed = hashlib.sha256(MAGIC)
    listed, objects, customers, hosts = set[bytes](), set[bytes](), set[bytes](), set[bytes]()
    networks, items = set[bytes](), 0
    while True:
        head = read(5)
        size = int.from_bytes(head[1:], "big")
        if len(head) < 5 or size > RECORD_BYTES_MAX:
            raise ProofInvalid("the proof is cut off, or a part of it is over its bound")
        body = read(size)
        if len(body) < size:
            raise ProofInvalid("the proof is cut off")
        try:
            if head[:1] == END:
                end = open_signed(body, DrainReceipt, network=None)
                break
            if head[:1] != ORDER:
                raise ProofInvalid("a part of the proof is of no known kind")
            order = open_order(body, None)
        except (PeerError, LimitError) as fault:
            raise ProofInvalid(fault.message, hint=fault.hint) from None
        hashed.update(head + body)
        items += 1
        listed.add(order.id)
        objects.add(order.record.locate)
        customers.add(order.author)
        hosts.add(order.record.host)
        networks.add(order.network)
    drained = end.record
    for is_wrong, fault_text in (
        (read(1), "something follows the end of the proof"),
        (drained.digest != hashed.digest(), "the end of the proof was signed for another list"),
        (networks - {end.network}, "a part of the proof is of another network"),
        (hosts - {end.author}, "an order of the proof is to another node"),
        (len(listed) != items, "the proof counts something twice"),
        (
            (items, len(objects)) != (drained.items, drained.objects),
            "the proof counts other objects than it lists",
        ),
    ):
        if is_wrong:
            raise ProofInvalid(fault_text)
    return CheckedProof(end.author, drained, len(customers))


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
