"""What a put remembers on the disk, so that it can go on after a kill.

    storage/upload/h/<id>                      head: secret, code, hosts
    storage/upload/s/<id><segment>             nonce, tag and roots; on the disk before it is sent
    storage/upload/a/<id><segment><column>     a host's receipt for its column of a segment
    storage/upload/r/<id>                      the sealed manifest, before it is sent

The id is the caller's. A segment is sealed anew under its kept nonce only to
compare: where tag or roots differ the content has changed, and nothing of what
was computed leaves this process. So one nonce never protects two contents.
docs/design/storage.md, "Resuming".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

from xsc.base import errors, limits
from xsc.base.ids import ID_BYTES
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.identity.envelope import Count, Id32, Record
from xsc.storage.object.capability import VerifyCapability, verify_key
from xsc.storage.object.erasure import Code
from xsc.storage.object.held import Held, held_of
from xsc.storage.object.manifest import Nonce, SealedSegment, Tag, hash_of, open_manifest
from xsc.terms.lease import LeaseHandle

PREFIX = b"storage/upload/"
HEAD = PREFIX + b"h/"
SEGMENT = PREFIX + b"s/"
ACK = PREFIX + b"a/"
RECORD = PREFIX + b"r/"
_KINDS = (HEAD, SEGMENT, ACK, RECORD)


class Head(Record):
    """What is the same for a whole upload."""

    KIND: ClassVar[str] = "upload_head"

    secret: Id32
    k: Count
    m: Count
    touched_ms: Count
    """When it was begun, or last went on."""
    hosts: tuple[LeaseHandle, ...]
    """Where each column goes; none where nothing goes on with it."""
    places: tuple[Held, ...]
    """What may lie where."""


class KeptSegment(Record):
    """How a segment was sealed."""

    KIND: ClassVar[str] = "upload_segment"

    length: Count
    nonce: Nonce
    tag: Tag
    roots: tuple[Id32, ...]


class Receipted(Record):
    """What a host gave a receipt for."""

    KIND: ClassVar[str] = "upload_receipt"

    at: Held


@dataclass(slots=True)
class Kept:
    """Everything that is kept of one upload."""

    head: Head
    segments: dict[int, KeptSegment] = field(default_factory=dict)
    acks: dict[tuple[int, int], Held] = field(default_factory=dict)
    """By segment and column."""
    sealed: bytes | None = None
    """The sealed manifest, once there is one."""

    @property
    def code(self) -> Code:
        """The code it was begun with."""
        return Code(self.head.k, self.head.m)

    @property
    def nodes(self) -> list[bytes]:
        """The present host of each column."""
        return [lease.node for lease in self.head.hosts]

    def has(self, segment: int, column: int, node: bytes) -> bool:
        """Say whether a host gave a receipt for a column of a segment."""
        ack = self.acks.get((segment, column))
        return ack is not None and ack.node == node

    def whole(self) -> list[int]:
        """Return the segments that every host of now gave a receipt for."""
        return [
            segment
            for segment in sorted(self.segments)
            if all(self.has(segment, *each) for each in enumerate(self.nodes))
        ]

    def stored_bytes(self) -> int:
        """Return how much of the content need not be sent again."""
        return sum(self.segments[segment].length for segment in self.whole())

    def held(self) -> dict[tuple[bytes, bytes], int]:
        """Return what may lie where, by node and lease."""
        places = {(node, lease_id): size for node, lease_id, size in self.head.places}
        receipted: dict[tuple[bytes, bytes], int] = {}
        for node, lease_id, size in self.acks.values():
            receipted[node, lease_id] = receipted.get((node, lease_id), 0) + size
        for place, size in receipted.items():
            places[place] = max(size, places.get(place, 0))
        return places


def sealed_of(kept: KeptSegment) -> SealedSegment:
    """Return what the manifest will say of a segment."""
    return SealedSegment(kept.nonce, kept.tag, kept.roots)


def segment_change(upload: bytes, index: int, length: int, sealed: SealedSegment) -> Change:
    """Return the write that keeps how a segment was sealed."""
    kept = KeptSegment(length=length, nonce=sealed.nonce, tag=sealed.tag, roots=sealed.roots)
    return SEGMENT + upload + index.to_bytes(4, "big"), kept.to_bytes()


def ack_change(upload: bytes, index: int, column: int, place: Held) -> Change:
    """Return the write that keeps a receipt."""
    key = ACK + upload + index.to_bytes(4, "big") + column.to_bytes(2, "big")
    return key, Receipted(at=place).to_bytes()


def ids(state: KeyValue) -> Iterator[bytes]:
    """Yield every upload that something is kept of."""
    for key, _ in state.scan(HEAD, prefix_end(HEAD)):
        yield key.removeprefix(HEAD)


def read_head(state: KeyValue, upload: bytes) -> Head | None:
    """Return what is kept of an upload as a whole, or None.

    Raises:
        StoreDamaged: what is kept is not what was written.
    """
    raw = state.get(HEAD + upload)
    if raw is None:
        return None
    try:
        return Head.from_bytes(raw, size_max=limits.MIB)
    except errors.RecordInvalid as fault:
        raise errors.StoreDamaged(f"the journal of a put is damaged: {fault.message}") from None


def read(state: KeyValue, upload: bytes) -> Kept | None:
    """Return what is kept of an upload, or None.

    Raises:
        StoreDamaged: what is kept is not what was written.
    """
    head = read_head(state, upload)
    if head is None:
        return None
    kept = Kept(head)
    try:
        for tail, value in _tails(state, SEGMENT + upload):
            segment = KeptSegment.from_bytes(value)
            kept.segments[int.from_bytes(tail, "big")] = segment
        for tail, value in _tails(state, ACK + upload):
            place = int.from_bytes(tail[:4], "big"), int.from_bytes(tail[4:], "big")
            kept.acks[place] = Receipted.from_bytes(value).at
        kept.sealed = state.get(RECORD + upload)
        if kept.sealed is not None:
            # Whoever goes on sends it as it is: what does not open cannot be sent.
            verify = VerifyCapability(verify_key(head.secret), hash_of(kept.sealed))
            open_manifest(kept.sealed, verify)
    except errors.RecordInvalid as fault:
        raise errors.StoreDamaged(f"the journal of a put is damaged: {fault.message}") from None
    return kept


def read_rest(state: KeyValue, upload: bytes) -> Kept | None:
    """Return what can be read of a journal that is damaged: enough to delete what it speaks of.

    None where the head cannot be read, without which nobody knows the object.
    """
    try:
        head = read_head(state, upload)
    except errors.StoreDamaged:
        return None
    if head is None:
        return None
    kept = Kept(head)
    with suppress(errors.StoreDamaged):
        for tail, value in _tails(state, ACK + upload):
            with suppress(errors.RecordInvalid):
                place = int.from_bytes(tail[:4], "big"), int.from_bytes(tail[4:], "big")
                kept.acks[place] = Receipted.from_bytes(value).at
    # A host whose receipts cannot be read may hold something all the same.
    known = {**{lease[:2]: 0 for lease in head.hosts}, **kept.held()}
    kept.head = head.model_copy(update={"places": held_of(known)})
    return kept


def _tails(state: KeyValue, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    for key, value in state.scan(prefix, prefix_end(prefix)):
        yield key.removeprefix(prefix), value


def forget(state: KeyValue, upload: bytes) -> list[Change]:
    """Return the writes that drop all that is kept of an upload."""
    assert len(upload) == ID_BYTES
    prefixes = [kind + upload for kind in _KINDS]
    return [(key, None) for prefix in prefixes for key, _ in state.scan(prefix, prefix_end(prefix))]
