"""The two formats of the shard store: bodies, and the index that finds them.

Bodies are appended: key `b` ‖ sequence, value = header length (2 bytes) ‖
canonical header ‖ data. A body is a *shard* or an *object record* (a sealed
manifest). A deletion removes body keys and leaves a *gone*
note (key `g` ‖ sequence) in the same write, so that an index that lags behind
learns of it. A body that was found damaged has a *damaged* note (key `d` ‖ its
sequence) until it is stored anew or deleted. Everything in the index follows from these.

Index keys: `s` ‖ locate ‖ generation ‖ segment ‖ column ‖ customer for shards,
`o` ‖ locate ‖ customer for object records, `u` ‖ lease for the bytes under a
lease, `m` for the high-water mark, and `c` for the mark at which the store was
closed, until it is opened. The customer stands in the key, so that
nobody can take the place of another's shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from xsc.base import encoding, errors, ids, merkle
from xsc.base.units import held_bytes
from xsc.storage.object import erasure, manifest

VERSION = 1
BODIES = b"b"
GONE = b"g"
DAMAGED = b"d"
SHARDS = b"s"
RECORDS = b"o"
USAGE = b"u"
MARK = b"m"
CLOSED = b"c"

Owner: TypeAlias = tuple[bytes, bytes]
"""Locate id of an object, and the customer that stored something of it."""


@dataclass(frozen=True, slots=True)
class Body:
    """A stored shard or object record."""

    index_key: bytes
    """Where the index has its entry: `shard_key` or `record_key`."""
    lease_id: bytes
    proof: bytes
    """The Merkle root of a shard; the SHA-256 of a sealed manifest."""
    data: erasure.Buffer

    @property
    def is_shard(self) -> bool:
        """Whether it is a shard, and no object record."""
        return self.index_key.startswith(SHARDS)

    @property
    def held_bytes(self) -> int:
        """What it counts for."""
        return held_bytes(len(self.data))

    @property
    def is_whole(self) -> bool:
        """Whether its data have the root or hash that it names."""
        found = merkle.root_of(self.data) if self.is_shard else manifest.hash_of(self.data)
        return found == self.proof


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What the index knows of a body."""

    sequence: int
    size_bytes: int
    lease_id: bytes
    proof: bytes

    @property
    def held_bytes(self) -> int:
        """What the body counts for."""
        return held_bytes(self.size_bytes)


@dataclass(frozen=True, slots=True)
class Damage:
    """A body that cannot be given back: its owner has to store it anew."""

    key: bytes
    """In the index."""
    entry: IndexEntry
    reason: str
    """ "unreadable": the database fails its checksum or holds no body; "gone": it holds nothing;
    "mismatch": it holds other bytes."""


# Keys


def sequenced(prefix: bytes, sequence: int) -> bytes:
    """Return the key of a body or note."""
    return prefix + sequence.to_bytes(8, "big")


def sequence_of(key: bytes) -> int:
    """Return the sequence of such a key."""
    return int.from_bytes(key[1:], "big")


def generation_prefix(locate: bytes, generation: int) -> bytes:
    """Return how the index keys of one encoding generation begin."""
    return SHARDS + locate + generation.to_bytes(4, "big")


def column_prefix(locate: bytes, generation: int, segment: int, column: int) -> bytes:
    """Return how the index keys of one column of a segment begin."""
    return generation_prefix(locate, generation) + segment.to_bytes(4, "big") + bytes([column])


def shard_key(locate: bytes, generation: int, segment: int, column: int, customer: bytes) -> bytes:
    """Return the index key of a shard."""
    return column_prefix(locate, generation, segment, column) + customer


def record_key(locate: bytes, customer: bytes) -> bytes:
    """Return the index key of an object record."""
    return RECORDS + locate + customer


def column_of_key(key: bytes) -> tuple[int, int, bytes]:
    """Return segment, column and customer of a shard's index key."""
    rest = key[1 + ids.ID_BYTES + 4 :]
    return int.from_bytes(rest[:4], "big"), rest[4], rest[5:]


def owner_of(key: bytes) -> Owner:
    """Return of which object, and whose, the body is that has an index key."""
    return key[1 : 1 + ids.ID_BYTES], key[-ids.ID_BYTES :]


def is_entry_key(key: bytes) -> bool:
    """Say whether a key of the index is one of a shard or of an object record."""
    length = {SHARDS: 1 + ids.ID_BYTES + 4 + 4 + 1 + ids.ID_BYTES, RECORDS: 1 + 2 * ids.ID_BYTES}
    return len(key) == length.get(key[:1])


# Values


def _decoded(raw: bytes) -> encoding.Value:
    try:
        return encoding.decode(raw)
    except errors.RecordInvalid as fault:
        raise errors.StoreDamaged(f"the store is damaged: {fault.message}") from None


def encode_body(body: Body) -> bytes:
    """Return the value of a body."""
    header = encoding.encode([VERSION, body.index_key, body.lease_id, body.proof])
    return b"".join((len(header).to_bytes(2, "big"), header, body.data))


def decode_body(raw: bytes) -> Body:
    """Return the body of a value; its data are a view, and not verified.

    Raises:
        StoreDamaged: not a body.
    """
    size = int.from_bytes(raw[:2], "big")
    match _decoded(raw[2 : 2 + size]):
        case [1, bytes(key), bytes(lease), bytes(proof)] if is_entry_key(key):
            return Body(key, lease, proof, memoryview(raw)[2 + size :])
        case _:
            raise errors.StoreDamaged("a stored body is damaged")


def entry_of(body: Body, sequence: int) -> IndexEntry:
    """Return what the index must know of a body."""
    return IndexEntry(sequence, len(body.data), body.lease_id, body.proof)


def encode_entry(entry: IndexEntry) -> bytes:
    """Return the index value of an entry."""
    return encoding.encode([VERSION, entry.sequence, entry.size_bytes, entry.lease_id, entry.proof])


def decode_entry(raw: bytes) -> IndexEntry:
    """Return the entry of an index value.

    Raises:
        StoreDamaged: not an entry.
    """
    match _decoded(raw):
        case [1, int(sequence), int(size), bytes(lease), bytes(proof)]:
            return IndexEntry(sequence, size, lease, proof)
        case _:
            raise errors.StoreDamaged("the index holds what is no entry")


def encode_number(number: int) -> bytes:
    """Return the stored value of a size, a sequence or a time."""
    return encoding.encode([VERSION, number])


def decode_number(raw: bytes) -> int:
    """Return the number of a stored value.

    Raises:
        StoreDamaged: not a number.
    """
    match _decoded(raw):
        case [1, int(number)] if not isinstance(number, bool):
            return number
        case _:
            raise errors.StoreDamaged("a stored number is none")


def encode_damaged(damage: Damage) -> bytes:
    """Return the value of a damaged note."""
    return encoding.encode([VERSION, damage.key, encode_entry(damage.entry), damage.reason])


def decode_damaged(raw: bytes) -> Damage:
    """Return what a damaged note says.

    Raises:
        StoreDamaged: not a damaged note.
    """
    match _decoded(raw):
        case [1, bytes(key), bytes(entry), str(reason)] if is_entry_key(key):
            return Damage(key, decode_entry(entry), reason)
        case _:
            raise errors.StoreDamaged("a note of damage is damaged")


def encode_gone(dropped: list[tuple[bytes, int]]) -> bytes:
    """Return the value of a gone note: index keys and the sequences they had."""
    items: list[encoding.Value] = [[key, sequence] for key, sequence in dropped]
    return encoding.encode([VERSION, *items])


def decode_gone(raw: bytes) -> list[tuple[bytes, int]]:
    """Return what a gone note says.

    Raises:
        StoreDamaged: not a gone note.
    """
    dropped = []
    match _decoded(raw):
        case [1, *items]:
            for item in items:
                match item:
                    case [bytes(key), int(sequence)]:
                        dropped.append((key, sequence))
                    case _:
                        raise errors.StoreDamaged("a note of a deletion is damaged")
            return dropped
        case _:
            raise errors.StoreDamaged("a note of a deletion is damaged")
