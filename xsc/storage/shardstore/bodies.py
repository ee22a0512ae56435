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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, StoreDamaged
from xsc.base.fields import take_bytes, take_int, take_list, take_str
from xsc.base.ids import ID_BYTES
from xsc.base.units import held_bytes
from xsc.storage.object.erasure import COLUMN_MAX, GENERATION_MAX, SEGMENT_MAX, Buffer, StorageShard
from xsc.storage.object.messages import ObjectRecord

VERSION = 1
BODIES = b"b"
GONE = b"g"
DAMAGED = b"d"
SHARDS = b"s"
RECORDS = b"o"
USAGE = b"u"
MARK = b"m"
CLOSED = b"c"


@dataclass(frozen=True, slots=True)
class ShardBody:
    """A stored shard."""

    locate: bytes
    generation: int
    segment: int
    column: int
    customer: bytes
    lease_id: bytes
    root: bytes
    data: Buffer

    @property
    def index_key(self) -> bytes:
        """Where the index holds its entry."""
        return (
            shards_prefix(self.locate, self.generation, self.segment)
            + bytes([self.column])
            + self.customer
        )

    @property
    def size_bytes(self) -> int:
        """The bytes of the shard."""
        return len(self.data)

    @property
    def held_bytes(self) -> int:
        """What it counts for."""
        return held_bytes(self.size_bytes)

    @property
    def proof(self) -> bytes:
        """What must be equal for it to be the same shard."""
        return self.root

    def pieces(self) -> list[Buffer]:
        """Return the data, to be joined after the header."""
        return [self.data]

    def header(self) -> dict[str, Value]:
        """Return the fields before the data."""
        return {
            "v": VERSION,
            "kind": "shard",
            "locate": self.locate,
            "generation": self.generation,
            "segment": self.segment,
            "column": self.column,
            "customer": self.customer,
            "lease": self.lease_id,
            "root": self.root,
        }


@dataclass(frozen=True, slots=True)
class RecordBody:
    """A stored object record."""

    locate: bytes
    customer: bytes
    lease_id: bytes
    manifest_hash: bytes
    """SHA-256 of the sealed manifest."""
    sealed: Buffer

    @property
    def index_key(self) -> bytes:
        """Where the index holds its entry."""
        return RECORDS + self.locate + self.customer

    @property
    def size_bytes(self) -> int:
        """The bytes of the manifest."""
        return len(self.sealed)

    @property
    def held_bytes(self) -> int:
        """What it counts for."""
        return held_bytes(self.size_bytes)

    @property
    def proof(self) -> bytes:
        """What must be equal for it to be the same record."""
        return self.manifest_hash

    def pieces(self) -> list[Buffer]:
        """Return the data, to be joined after the header."""
        return [self.sealed]

    def header(self) -> dict[str, Value]:
        """Return the fields before the data."""
        return {
            "v": VERSION,
            "kind": "object",
            "locate": self.locate,
            "customer": self.customer,
            "lease": self.lease_id,
            "manifest": self.manifest_hash,
        }


Body: TypeAlias = ShardBody | RecordBody


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


def bodies_of(
    *,
    customer: bytes,
    lease_id: bytes,
    locate: bytes,
    generation: int,
    shards: Sequence[tuple[int, StorageShard]],
    record: ObjectRecord | None,
) -> list[Body]:
    """Return what a shard store is to hold."""
    bodies: list[Body] = [
        ShardBody(
            locate,
            generation,
            segment,
            shard.column,
            customer,
            lease_id,
            shard.root,
            shard.data,
        )
        for segment, shard in shards
    ]
    if record is not None:
        bodies.append(RecordBody(locate, customer, lease_id, record.manifest_hash, record.sealed))
    return bodies


def sequenced(prefix: bytes, sequence: int) -> bytes:
    """Return the key of a body or gone note."""
    return prefix + sequence.to_bytes(8, "big")


def sequence_of(key: bytes) -> int:
    """Return the sequence of such a key."""
    return int.from_bytes(key[1:], "big")


def locate_prefix(locate: bytes) -> bytes:
    """Return how the index keys of all shards of an object begin."""
    return SHARDS + locate


def generation_prefix(locate: bytes, generation: int) -> bytes:
    """Return how the index keys of one encoding generation begin."""
    return locate_prefix(locate) + generation.to_bytes(4, "big")


def shards_prefix(locate: bytes, generation: int, segment: int) -> bytes:
    """Return how the index keys of one segment begin."""
    return generation_prefix(locate, generation) + segment.to_bytes(4, "big")


def column_of_key(key: bytes) -> tuple[int, int, bytes]:
    """Return segment, column and customer of a shard's index key."""
    rest = key[1 + ID_BYTES + 4 :]
    return int.from_bytes(rest[:4], "big"), rest[4], rest[5:]


def encode_body(body: Body) -> bytes:
    """Return the value of a body."""
    header = encode(body.header())
    return b"".join((len(header).to_bytes(2, "big"), header, *body.pieces()))


def decode_body(raw: bytes) -> Body:
    """Return the body of a value; its data are views, and not verified.

    Raises:
        StoreDamaged: not a body.
    """
    size = int.from_bytes(raw[:2], "big")
    data = memoryview(raw)[2 + size :]
    try:
        header = decode(raw[2 : 2 + size])
        if not isinstance(header, dict) or header.get("v") != VERSION:
            raise RecordInvalid("of an unknown version")
        kind = take_str(header, "kind")
        locate = take_bytes(header, "locate", size=ID_BYTES)
        customer = take_bytes(header, "customer", size=ID_BYTES)
        lease_id = take_bytes(header, "lease", size=ID_BYTES)
        if kind == "shard":
            return ShardBody(
                locate,
                take_int(header, "generation", most=GENERATION_MAX),
                take_int(header, "segment", most=SEGMENT_MAX),
                take_int(header, "column", most=COLUMN_MAX),
                customer,
                lease_id,
                take_bytes(header, "root", size=ID_BYTES),
                data,
            )
        if kind != "object":
            raise RecordInvalid("of an unknown kind")
        manifest = take_bytes(header, "manifest", size=ID_BYTES)
        return RecordBody(locate, customer, lease_id, manifest, data)
    except RecordInvalid as fault:
        raise StoreDamaged(f"a stored body is damaged: {fault.message}") from None


def entry_of(body: Body, sequence: int) -> IndexEntry:
    """Return what the index must know of a body."""
    return IndexEntry(sequence, body.size_bytes, body.lease_id, body.proof)


def encode_entry(entry: IndexEntry) -> bytes:
    """Return the index value of an entry."""
    return encode([VERSION, entry.sequence, entry.size_bytes, entry.lease_id, entry.proof])


def decode_entry(raw: bytes) -> IndexEntry:
    """Return the entry of an index value.

    Raises:
        StoreDamaged: not an entry.
    """
    try:
        value = decode(raw)
    except RecordInvalid as fault:
        raise StoreDamaged(f"the index is damaged: {fault.message}") from None
    match value:
        case [1, int(sequence), int(size), bytes(lease), bytes(proof)]:
            return IndexEntry(sequence, size, lease, proof)
        case _:
            raise StoreDamaged("the index holds what is no entry")


def encode_number(number: int) -> bytes:
    """Return the stored value of a size, a sequence or a time."""
    return encode([VERSION, number])


def decode_number(raw: bytes) -> int:
    """Return the number of a stored value.

    Raises:
        StoreDamaged: not a number.
    """
    try:
        value = decode(raw)
    except RecordInvalid as fault:
        raise StoreDamaged(f"a stored number is damaged: {fault.message}") from None
    match value:
        case [1, int(number)] if not isinstance(number, bool):
            return number
        case _:
            raise StoreDamaged("a stored number is none")


def encode_damaged(key: bytes, entry: IndexEntry, reason: str) -> bytes:
    """Return the value of a damaged note: the body's index key and entry, and what is wrong."""
    return encode(
        {"v": VERSION, "key": key, "entry": encode_entry(entry), "reason": reason},
    )


def decode_damaged(raw: bytes) -> tuple[bytes, IndexEntry, str]:
    """Return index key, entry and reason of a damaged note.

    Raises:
        StoreDamaged: not a damaged note.
    """
    try:
        value = decode(raw)
        if not isinstance(value, dict) or value.get("v") != VERSION:
            raise RecordInvalid("of an unknown version")
        key, reason = take_bytes(value, "key"), take_str(value, "reason")
        entry = decode_entry(take_bytes(value, "entry"))
        if not is_entry_key(key):
            raise RecordInvalid("not a key of the index")
    except RecordInvalid as fault:
        raise StoreDamaged(f"a note of damage is damaged: {fault.message}") from None
    return key, entry, reason


def is_entry_key(key: bytes) -> bool:
    """Say whether a key of the index is one of a shard or of an object record."""
    length = {SHARDS: 1 + ID_BYTES + 4 + 4 + 1 + ID_BYTES, RECORDS: 1 + 2 * ID_BYTES}
    return len(key) == length.get(key[:1])


def encode_gone(dropped: list[tuple[bytes, int]]) -> bytes:
    """Return the value of a gone note: index keys and the sequences they had."""
    return encode({"v": VERSION, "dropped": [[key, sequence] for key, sequence in dropped]})


def decode_gone(raw: bytes) -> list[tuple[bytes, int]]:
    """Return what a gone note says.

    Raises:
        StoreDamaged: not a gone note.
    """
    try:
        value = decode(raw)
        if not isinstance(value, dict) or value.get("v") != VERSION:
            raise RecordInvalid("of an unknown version")
        dropped = []
        for item in take_list(value, "dropped"):
            match item:
                case [bytes(key), int(sequence)]:
                    dropped.append((key, sequence))
                case _:
                    raise RecordInvalid("not a key and a sequence")
    except RecordInvalid as fault:
        raise StoreDamaged(f"a note of a deletion is damaged: {fault.message}") from None
    return dropped
