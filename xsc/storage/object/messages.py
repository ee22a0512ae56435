"""What storage says to peers: building requests and answers, and refusing bad ones.

Header; parts -> answer; its parts:

    storage.put     lease, locate, generation, shards, manifest; shards, sealed manifest
                    -> receipt
    storage.get     locate, generation, shards with roots, most
                    -> states, proofs; what is ok of them
    storage.stat    locate, generation, manifest, after -> record, columns, records, mine, until
    storage.keep    lease, locate, generation, shards with roots, most -> receipt
    storage.have    the same -> receipt over those that lie there under the lease
    storage.find    locate, manifest, most -> ; sealed manifest where it is held
    storage.holds   locate, generation, manifest, roots -> columns, record
    storage.delete  order -> receipt

A put that says `manifest` ends with the sealed manifest as its last part. `most` is how
many bytes are read at most; where it is little, calls travel with others. A get names
whole shards, or in `leaves` the first leaf, the one after the last, and the size of the
shard; `proofs` holds a path for each of those that are given, and is there only where
leaves were asked for. A stat speaks of the shards behind `after`; where others come
behind those, `until` is the place of the last one, and the next stat names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from xsc.base import limits, merkle
from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid, TooLarge
from xsc.base.fields import take_bool, take_bytes, take_int, take_list, take_opt_bytes, take_str
from xsc.base.ids import ID_BYTES
from xsc.base.units import held_bytes
from xsc.storage.object import inventory
from xsc.storage.object.erasure import COLUMN_MAX, GENERATION_MAX, SEGMENT_MAX, Buffer, StorageShard
from xsc.storage.object.segment import Span
from xsc.terms.storage_receipt import HeldShard

PUT = "storage.put"
GET = "storage.get"
STAT = "storage.stat"
FIND = "storage.find"
KEEP = "storage.keep"
HAVE = "storage.have"
HOLDS = "storage.holds"
DELETE = "storage.delete"
SHARD_BYTES_MAX = limits.SEGMENT_BYTES
GET_MAX = 64
"""Shards in one get."""
PATH_MAX = 64
"""Hashes that prove leaves of one shard: two a level, more than any shard has."""
LEASES_TOLD_MAX = 4096


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """A sealed manifest, as hosts keep it."""

    sealed: bytes
    sealed_root: bytes
    manifest_hash: bytes
    again: bool = False
    """Whether an earlier put may have stored it."""

    @property
    def held_bytes(self) -> int:
        """What it counts for at a host."""
        return held_bytes(len(self.sealed))


@dataclass(frozen=True, slots=True)
class PutRequest:
    """A checked `storage.put`."""

    lease_id: bytes
    locate: bytes
    generation: int
    shards: tuple[tuple[int, StorageShard], ...]
    """Segment and shard."""
    sealed: Buffer | None

    @property
    def held_bytes(self) -> int:
        """What it counts for where nothing of it is held yet."""
        size = held_bytes(sum(len(shard.data) for _, shard in self.shards), len(self.shards))
        return size if self.sealed is None else size + held_bytes(len(self.sealed))


def _map(value: Value) -> Mapping[str, Value]:
    if not isinstance(value, dict):
        raise RecordInvalid("an item of a list must be a map")
    return value


def _object(header: Mapping[str, Value]) -> tuple[bytes, int]:
    """Return locate id and generation."""
    locate = take_bytes(header, "locate", size=ID_BYTES)
    return locate, take_int(header, "generation", most=GENERATION_MAX)


def put_message(
    lease_id: bytes,
    locate: bytes,
    generation: int,
    shards: Sequence[tuple[int, StorageShard]],
    record: ObjectRecord | None,
) -> tuple[dict[str, Value], list[merkle.Part]]:
    """Return header and parts of a `storage.put`."""
    listed: list[Value] = [
        {"segment": segment, "column": shard.column} for segment, shard in shards
    ]
    parts = [merkle.Part(shard.data, shard.root) for _, shard in shards]
    if record is not None:
        parts.append(merkle.Part(record.sealed, record.sealed_root))
    header: dict[str, Value] = {
        "lease": lease_id,
        "locate": locate,
        "generation": generation,
        "shards": listed,
        "manifest": record is not None,
    }
    return header, parts


def read_put(header: Mapping[str, Value], parts: Sequence[merkle.Part]) -> PutRequest:
    """Return a `storage.put`, its parts already verified against their roots.

    Raises:
        RecordInvalid, TooLarge: it breaks a rule.
    """
    listed = take_list(header, "shards", most=limits.FRAME_PARTS_MAX)
    carried = take_bool(header, "manifest")
    if len(parts) != len(listed) + carried:
        raise RecordInvalid(f"{len(listed) + carried} parts are announced, {len(parts)} came")
    if not parts:
        raise RecordInvalid("there is nothing to store")
    shards = []
    places = set()
    for item, part in zip(listed, parts, strict=False):
        fields = _map(item)
        segment = take_int(fields, "segment", most=SEGMENT_MAX)
        column = take_int(fields, "column", most=COLUMN_MAX)
        if not 0 < len(part.data) <= SHARD_BYTES_MAX:
            raise TooLarge(f"a shard has 1 to {SHARD_BYTES_MAX} bytes, this has {len(part.data)}")
        places.add((segment, column))
        shards.append((segment, StorageShard(column, part.data, part.root)))
    if len(places) != len(shards):
        raise RecordInvalid("a shard is named twice")
    sealed = parts[-1].data if carried else None
    if sealed is not None and len(sealed) > limits.MANIFEST_BYTES_MAX:
        raise TooLarge(f"a sealed manifest has at most {limits.MANIFEST_BYTES_MAX} bytes")
    return PutRequest(
        take_bytes(header, "lease", size=ID_BYTES),
        *_object(header),
        tuple(shards),
        sealed,
    )


def get_message(
    locate: bytes, generation: int, wanted: Sequence[inventory.Wanted]
) -> dict[str, Value]:
    """Return the header of a `storage.get`."""
    listed: list[Value] = [_asked(want) for want in wanted]
    sizes = [want.size_bytes if want.span is None else want.span.shard_bytes for want in wanted]
    most = min(limits.PEER_BODY_BYTES_MAX, sum(sizes))
    return {"locate": locate, "generation": generation, "shards": listed, "most": most}


def _asked(want: inventory.Wanted) -> dict[str, Value]:
    item: dict[str, Value] = {"segment": want.segment, "column": want.column, "root": want.root}
    if want.span is not None:
        item["leaves"] = [want.span.first, want.span.stop, want.span.shard_bytes]
    return item


def _span(fields: Mapping[str, Value]) -> Span | None:
    if "leaves" not in fields:
        return None
    match fields["leaves"]:
        case [int(first), int(stop), int(size)] if not any(
            isinstance(item, bool) for item in (first, stop, size)
        ):
            if 0 < size <= SHARD_BYTES_MAX and 0 <= first < stop <= merkle.leaf_count(size):
                return Span(first, stop, size)
    raise RecordInvalid("leaves are the first, the one after the last, and the size of the shard")


def read_get(header: Mapping[str, Value]) -> tuple[bytes, int, list[inventory.Wanted], int]:
    """Return locate id, generation, what is wanted, and how many bytes are read at most.

    Raises:
        RecordInvalid: it breaks a rule, or names a shard twice.
    """
    wanted = []
    for item in take_list(header, "shards", most=GET_MAX):
        fields = _map(item)
        wanted.append(
            inventory.Wanted(
                take_int(fields, "segment", most=SEGMENT_MAX),
                take_int(fields, "column", most=COLUMN_MAX),
                take_bytes(fields, "root", size=ID_BYTES),
                _span(fields),
            )
        )
    if len({(item.segment, item.column) for item in wanted}) != len(wanted):
        raise RecordInvalid("a shard is named twice")
    return (*_object(header), wanted, read_most(header))


def read_most(header: Mapping[str, Value]) -> int:
    """Return how many bytes are read at most for an answer.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    return take_int(header, "most", most=limits.PEER_BODY_BYTES_MAX)


ANSWER_BOUNDS: Mapping[str, Callable[[Mapping[str, Value]], int]] = {
    GET: read_most,
    KEEP: read_most,
    FIND: read_most,
}
"""How much the answers of methods have in memory at most that read what is stored."""


def keep_message(
    lease_id: bytes, locate: bytes, generation: int, shards: Sequence[HeldShard]
) -> dict[str, Value]:
    """Return the header of a `storage.keep`, a put of what the host has already, or `have`."""
    wanted = [
        inventory.Wanted(item.segment, item.column, item.root, size_bytes=item.size_bytes)
        for item in shards
    ]
    return {"lease": lease_id, **get_message(locate, generation, wanted)}


def read_keep(header: Mapping[str, Value]) -> tuple[bytes, bytes, int, list[inventory.Wanted], int]:
    """Return lease, locate id, generation, what is to be kept, and the bytes read at most.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    locate, generation, wanted, most = read_get(header)
    if not wanted or any(item.span is not None for item in wanted):
        raise RecordInvalid("whole shards are named, one at least")
    return take_bytes(header, "lease", size=ID_BYTES), locate, generation, wanted, most


def get_answer(found: Sequence[inventory.FoundShard]) -> tuple[dict[str, Value], list[Buffer]]:
    """Return the answer to a `storage.get`."""
    states: list[Value] = [item.state for item in found]
    header: dict[str, Value] = {"states": states}
    proofs: list[Value] = [list(item.path) for item in found if item.path is not None]
    if proofs:
        header["proofs"] = proofs
    return header, [item.data for item in found if item.data is not None]


def _path(value: Value) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > PATH_MAX:
        raise RecordInvalid(f"a proof is a list of at most {PATH_MAX} hashes")
    path = []
    for item in value:
        if not isinstance(item, bytes) or len(item) != merkle.ROOT_BYTES:
            raise RecordInvalid("a proof consists of hashes")
        path.append(item)
    return tuple(path)


def _holds(data: Buffer, span: Span, root: bytes, path: tuple[bytes, ...]) -> bool:
    return len(data) == span.size_bytes and merkle.span_holds(
        root, span.shard_bytes, span.first, data, path
    )


def read_got(
    header: Mapping[str, Value], parts: Sequence[Buffer], wanted: Sequence[inventory.Wanted]
) -> list[inventory.FoundShard]:
    """Return what a peer answered; what does not fit the root that was asked for is corrupt.

    Raises:
        RecordInvalid: the answer is not about what was asked.
    """
    states = take_list(header, "states", most=GET_MAX)
    if len(states) != len(wanted) or len(parts) != states.count("ok"):
        raise RecordInvalid("the answer does not fit the shards that were asked for")
    given = [want for state, want in zip(states, wanted, strict=True) if state == "ok"]
    proved = sum(want.span is not None for want in given)
    proofs = take_list(header, "proofs", most=GET_MAX) if proved else []
    if len(proofs) != proved:
        raise RecordInvalid("the answer does not prove what it gives")
    data, paths = iter(parts), iter(proofs)
    found = []
    for state, want in zip(states, wanted, strict=True):
        match state:
            case "ok":
                piece = next(data)
                good = (
                    merkle.root_of(piece) == want.root
                    if want.span is None
                    else _holds(piece, want.span, want.root, _path(next(paths)))
                )
                found.append(
                    inventory.FoundShard("ok", piece) if good else inventory.FoundShard("corrupt")
                )
            case "missing":
                found.append(inventory.FoundShard("missing"))
            case "corrupt":
                found.append(inventory.FoundShard("corrupt"))
            case _:
                raise RecordInvalid("a shard is in no known state")
    return found


def stat_message(
    locate: bytes, generation: int, manifest_hash: bytes, after: bytes = b""
) -> dict[str, Value]:
    """Return the header of a `storage.stat`."""
    return {
        "locate": locate,
        "generation": generation,
        "manifest": manifest_hash,
        "after": after or None,
    }


def _place(header: Mapping[str, Value], name: str) -> bytes:
    place = take_opt_bytes(header, name)
    if place is not None and len(place) != inventory.PLACE_BYTES:
        raise RecordInvalid(f"the field '{name}' must be a segment, a column and a customer")
    return place or b""


def read_stat(header: Mapping[str, Value]) -> tuple[bytes, int, bytes, bytes]:
    """Return locate id, generation, manifest hash, and the place behind which to go on.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    manifest = take_bytes(header, "manifest", size=ID_BYTES)
    return (*_object(header), manifest, _place(header, "after"))


def stat_answer(held: inventory.HeldObject, caller: bytes) -> dict[str, Value]:
    """Return the answer to a `storage.stat` of that caller."""
    columns: list[Value] = [
        {
            "customer": item.customer,
            "column": item.column,
            "segments": item.segments,
            "digest": item.digest,
            "damaged": item.damaged,
            "ends_ms": item.ends_ms,
            "bad": [*item.bad],
        }
        for item in held.columns[: limits.COLUMNS_MAX]
    ]
    records: list[Value] = [
        {"customer": item.customer, "ends_ms": item.ends_ms}
        for item in held.records[: limits.COLUMNS_MAX]
    ]
    sizes: list[Value] = [[lease, size] for lease, size in held.sizes_of(caller)]
    return {
        "record": held.record,
        "columns": columns,
        "records": records,
        "until": held.until or None,
        # A part of them would say that nothing is stored under the others.
        "mine": sizes if len(sizes) <= LEASES_TOLD_MAX else None,
    }


def _end(fields: Mapping[str, Value]) -> int | None:
    """Return when a lease ends; None where it never does, or the host does not say."""
    return None if fields.get("ends_ms") is None else take_int(fields, "ends_ms")


def _bad(fields: Mapping[str, Value]) -> tuple[int, ...]:
    """Return which segments are damaged."""
    listed = take_list(fields, "bad", most=limits.DAMAGED_TOLD_MAX)
    return tuple(take_int({"bad": segment}, "bad", most=SEGMENT_MAX) for segment in listed)


def _mine(header: Mapping[str, Value]) -> tuple[tuple[bytes, int], ...] | None:
    """Return the bytes stored for the caller by lease; None where the host does not say."""
    if header.get("mine", ()) is None:
        return None
    found: dict[bytes, int] = {}
    for item in take_list(header, "mine", most=LEASES_TOLD_MAX):
        match item:
            case [bytes(lease), int(size)] if len(lease) == ID_BYTES and 0 <= size < 2**63:
                found[lease] = size
            case _:
                raise RecordInvalid("an item is not a lease and the bytes under it")
    return tuple(found.items())


def read_stated(header: Mapping[str, Value]) -> inventory.HeldObject:
    """Return what a peer says that it holds.

    Raises:
        RecordInvalid: the answer breaks a rule.
    """
    record = take_str(header, "record")
    if record not in ("ok", "missing", "corrupt"):
        raise RecordInvalid("the record is in no known state")
    columns = []
    for item in take_list(header, "columns", most=limits.COLUMNS_MAX):
        fields = _map(item)
        columns.append(
            inventory.HeldColumn(
                take_bytes(fields, "customer", size=ID_BYTES),
                take_int(fields, "column", most=COLUMN_MAX),
                take_int(fields, "segments"),
                take_bytes(fields, "digest", size=ID_BYTES),
                take_int(fields, "damaged"),
                _end(fields),
                bad=_bad(fields),
            )
        )
    records = []
    for item in take_list(header, "records", most=limits.COLUMNS_MAX):
        fields = _map(item)
        customer = take_bytes(fields, "customer", size=ID_BYTES)
        records.append(inventory.HeldRecord(customer, _end(fields)))
    return inventory.HeldObject(
        tuple(columns),
        cast(inventory.HeldState, record),
        tuple(records),
        mine=_mine(header),
        until=_place(header, "until"),
    )


def find_message(locate: bytes, manifest_hash: bytes, most: int) -> dict[str, Value]:
    """Return the header of a `storage.find`."""
    return {"locate": locate, "manifest": manifest_hash, "most": most}


def read_find(header: Mapping[str, Value]) -> tuple[bytes, bytes, int]:
    """Return locate id, manifest hash, and the bytes that are read at most.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    return (
        take_bytes(header, "locate", size=ID_BYTES),
        take_bytes(header, "manifest", size=ID_BYTES),
        read_most(header),
    )


def read_found(parts: Sequence[Buffer]) -> Buffer | None:
    """Return the sealed manifest that a peer found, unverified.

    Raises:
        RecordInvalid: the answer breaks a rule.
    """
    if len(parts) > 1:
        raise RecordInvalid("the answer has more than a manifest")
    return parts[0] if parts else None


def holds_message(
    locate: bytes, generation: int, manifest_hash: bytes, roots: Sequence[bytes]
) -> dict[str, Value]:
    """Return the header of a `storage.holds`."""
    return {
        "locate": locate,
        "generation": generation,
        "manifest": manifest_hash,
        "roots": [*roots],
    }


def read_holds(header: Mapping[str, Value]) -> tuple[bytes, int, bytes, list[bytes]]:
    """Return locate id, generation, manifest hash and the roots of the first segment.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    listed = take_list(header, "roots", most=limits.SHARDS_MAX)
    manifest = take_bytes(header, "manifest", size=ID_BYTES)
    roots = [take_bytes({"root": root}, "root", size=ID_BYTES) for root in listed]
    return (*_object(header), manifest, roots)


def holds_answer(holds: inventory.ColumnPresence) -> dict[str, Value]:
    """Return the answer to a `storage.holds`."""
    return {"columns": [*sorted(holds.columns)], "record": holds.record}


def read_held(header: Mapping[str, Value], n: int) -> inventory.ColumnPresence:
    """Return what a peer says that it holds of an object of n columns.

    Raises:
        RecordInvalid: the answer breaks a rule.
    """
    listed = take_list(header, "columns", most=n)
    columns = [take_int({"column": column}, "column", most=n - 1) for column in listed]
    return inventory.ColumnPresence(frozenset(columns), take_bool(header, "record"))
