"""What a node says when it leaves, and how it proves that what it held lies elsewhere.

A node that leaves says so in a signed `leaving`; the later word counts. For each
page of a column that it held it then keeps a `moved_away`: the placement that
its owner (or the owner's delegate) signed, and the receipt of the node that the
column lies at by now. Its proof is a file of all of them, which ends with its own
signed count:

    "XSC drain proof 1\\n", then frames: tag (1 byte), length (4 bytes, big-endian), bytes
    tag "m": a moved_away; tag "e": the signed drained, which is the last frame

Vectors: tests/vectors/leaving.json. Design: docs/design/storage-drain.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from xsc.base.errors import LimitError, PeerError, ProofInvalid, ReceiptInvalid
from xsc.base.limits import DRAIN_PAGE_SEGMENTS, RECORD_BYTES_MAX
from xsc.identity.envelope import Count, Id32, Record, open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.storage.delegation import Placed, open_placement
from xsc.terms.storage_receipt import HeldShard, StorageReceipt

MAGIC: Final = b"XSC drain proof 1\n"
ITEM: Final = b"m"
END: Final = b"e"


class Leaving(Record):
    """Signed by a node: from now on it leaves, or stays after all."""

    KIND: ClassVar[str] = "leaving"

    leaving: bool
    said_ms: Count
    """The latest word counts."""


class MovedAway(Record):
    """That one page of a column, or an object without shards, lies at another node."""

    KIND: ClassVar[str] = "moved_away"

    placement: bytes
    """Signed by the owner, or by the delegate that the owner's names; it is inside."""
    receipt: bytes
    """Signed by the node that holds it now."""


class Drained(Record):
    """Signed by the node that leaves: the end of its proof, and what is not in it."""

    KIND: ClassVar[str] = "drained"

    items: Count
    digest: Id32
    """SHA-256 of all that comes before this in the file."""
    objects: Count
    shards: Count
    shard_bytes: Count
    released_bytes: Count
    """Deleted by its customers before it had moved."""
    left_objects: Count
    """Objects that the node still holds and that are not proven to lie elsewhere."""
    said_ms: Count


@dataclass(frozen=True, slots=True)
class Proven:
    """What a `moved_away` proves."""

    placed: Placed
    network: bytes
    host: bytes
    generation: int
    manifest: bytes
    shards: tuple[HeldShard, ...]
    """One page of one column, in order; empty for an object without shards."""

    @property
    def locate(self) -> bytes:
        """The object."""
        return self.placed.placement.locate

    @property
    def place(self) -> tuple[int, int] | None:
        """Column and page; None for an object without shards."""
        if not self.shards:
            return None
        return self.shards[0].column, self.shards[0].segment // DRAIN_PAGE_SEGMENTS

    @property
    def size_bytes(self) -> int:
        """Bytes of the shards."""
        return sum(shard.size_bytes for shard in self.shards)


def page_of(page: int, segments: int) -> range:
    """Return the segments of a page."""
    first = page * DRAIN_PAGE_SEGMENTS
    return range(first, min(first + DRAIN_PAGE_SEGMENTS, segments))


def check_moved(item: MovedAway, *, leaver: bytes, network: bytes | None) -> Proven:
    """Return what an item proves, once everything about it was checked.

    Args:
        item: to be checked.
        leaver: the node that must not be where the shards lie now.
        network: that both must be of; None takes any, but the same.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: placement or receipt is none.
        ReceiptInvalid: they do not prove it together, and why.
    """
    signed = open_signed(item.receipt, StorageReceipt, network=network)
    receipt = signed.record
    placed = open_placement(item.placement, signed.network)
    placement = placed.placement
    if receipt.host != signed.author:
        raise ReceiptInvalid("the receipt is not signed by its host")
    if receipt.host == leaver:
        raise ReceiptInvalid("the receipt is by the node that leaves")
    if receipt.locate != placement.locate:
        raise ReceiptInvalid("receipt and placement are of two objects")
    if receipt.generation != placement.code_generation:
        raise ReceiptInvalid("receipt and placement are of two encoding generations")
    if receipt.placement != placed.id or receipt.manifest is None:
        raise ReceiptInvalid("the host of the receipt does not keep that placement")
    columns = {shard.column for shard in receipt.shards}
    if receipt.shards:
        first = receipt.shards[0]
        wanted = page_of(first.segment // DRAIN_PAGE_SEGMENTS, placement.segments)
        if len(columns) != 1 or [shard.segment for shard in receipt.shards] != list(wanted):
            raise ReceiptInvalid("the receipt is not of one whole page of one column")
        if (
            first.column >= len(placement.columns)
            or placement.columns[first.column] != receipt.host
        ):
            raise ReceiptInvalid("the placement names another node for that column")
    elif placement.segments or receipt.host not in placement.columns:
        raise ReceiptInvalid("the receipt names no shards of an object that has some")
    return Proven(
        placed,
        signed.network,
        receipt.host,
        receipt.generation,
        receipt.manifest,
        receipt.shards,
    )


@dataclass(slots=True)
class Tally:
    """What the items of a proof come to."""

    items: int = 0
    shards: int = 0
    shard_bytes: int = 0

    def add(self, proven: Proven) -> None:
        """Count one more item."""
        self.items += 1
        self.shards += len(proven.shards)
        self.shard_bytes += proven.size_bytes


def _frame(tag: bytes, body: bytes) -> bytes:
    return tag + len(body).to_bytes(4, "big") + body


@dataclass(frozen=True, slots=True)
class Rest:
    """What the end of a proof says beside its items."""

    released_bytes: int
    left_objects: int
    said_ms: int


def proof_of(
    items: Iterable[bytes], rest: Rest, *, key: KeyPair, network: bytes
) -> Iterator[bytes]:
    """Yield a proof file piece by piece.

    Args:
        items: the bytes of checked `moved_away` records.
        rest: what else is to be said.
        key: of the node that leaves.
        network: that it is of.
    """
    hashed = hashlib.sha256(MAGIC)
    yield MAGIC
    tally, objects = Tally(), set()
    for raw in items:
        proven = check_moved(MovedAway.from_bytes(raw), leaver=key.node_id, network=network)
        tally.add(proven)
        objects.add(proven.locate)
        framed = _frame(ITEM, raw)
        hashed.update(framed)
        yield framed
    drained = Drained(
        items=tally.items,
        digest=hashed.digest(),
        objects=len(objects),
        shards=tally.shards,
        shard_bytes=tally.shard_bytes,
        released_bytes=rest.released_bytes,
        left_objects=rest.left_objects,
        said_ms=rest.said_ms,
    )
    yield _frame(END, sign(drained, key, network).raw)


@dataclass(frozen=True, slots=True)
class CheckedProof:
    """A proof that holds."""

    node: bytes
    drained: Drained
    hosts: int
    """How many nodes hold it now."""


def check_proof(read: Callable[[int], bytes]) -> CheckedProof:
    """Return what a proof file proves.

    Args:
        read: gives up to so many of the next bytes, fewer only at the end.

    Raises:
        ProofInvalid: the first thing that is wrong.
    """
    if read(len(MAGIC)) != MAGIC:
        raise ProofInvalid("this is no drain proof of a known version")
    hashed = hashlib.sha256(MAGIC)
    seen = _Seen()
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
                if read(1):
                    raise ProofInvalid("something follows the end of the proof")
                return seen.ended(body, hashed.digest())
            if head[:1] != ITEM:
                raise ProofInvalid("a part of the proof is of no known kind")
            seen.add(check_moved(MovedAway.from_bytes(body), leaver=b"", network=None))
        except (PeerError, LimitError) as fault:
            raise ProofInvalid(fault.message, hint=fault.hint) from None
        hashed.update(head + body)


class _Seen:
    """What the items of a file came to so far."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._places: set[tuple[bytes, int, tuple[int, int] | None]] = set()
        self._hosts: set[bytes] = set()
        self._networks: set[bytes] = set()

    def add(self, proven: Proven) -> None:
        self._tally.add(proven)
        self._places.add((proven.locate, proven.generation, proven.place))
        self._hosts.add(proven.host)
        self._networks.add(proven.network)

    def ended(self, body: bytes, digest: bytes) -> CheckedProof:
        signed = open_signed(body, Drained, network=None)
        drained, tally = signed.record, self._tally
        if drained.digest != digest:
            raise ProofInvalid("the end of the proof was signed for another list")
        if self._networks - {signed.network}:
            raise ProofInvalid("a part of the proof is of another network")
        if signed.author in self._hosts:
            raise ProofInvalid("some of it lies at the very node that leaves")
        if len(self._places) != tally.items:
            raise ProofInvalid("the proof counts something twice")
        objects = {locate for locate, _, _ in self._places}
        counted = (tally.items, len(objects), tally.shards, tally.shard_bytes)
        if counted != (drained.items, drained.objects, drained.shards, drained.shard_bytes):
            raise ProofInvalid("the proof counts other shards than it lists")
        return CheckedProof(signed.author, drained, len(self._hosts))
