"""What storage says to peers: building requests and answers, and refusing bad ones.

Header; parts -> answer; its parts:

    storage.put     lease, locate, generation, shards, placement, placement_seal;
                    shards, sealed manifest
                    -> receipt
    storage.get     locate, generation, shards with roots -> states, proofs; what is ok of them
    storage.stat    locate, generation, manifest -> record, rank, columns, records, mine
    storage.keep    lease, locate, generation, shards with roots -> receipt
    storage.find    locate, manifest -> placements; sealed manifest
    storage.delete  locate, final -> receipt
    storage.trim    locate, columns -> freed, by lease

A put that carries a placement ends with the sealed manifest as its last part. A
get names whole shards, or in `leaves` the first leaf, the one after the last, and
the size of the shard; `proofs` holds a path for each of those that are given, and
is there only where leaves were asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid, TooLarge
from xsc.base.fields import take_bool, take_bytes, take_int, take_list, take_opt_bytes, take_str
from xsc.base.ids import ID_BYTES
from xsc.base.limits import (
    DAMAGED_TOLD_MAX,
    FRAME_PARTS_MAX,
    MANIFEST_BYTES_MAX,
    RECORD_BYTES_MAX,
    SEGMENT_BYTES,
)
from xsc.base.merkle import ROOT_BYTES, Part, leaf_count, root_of, span_holds
from xsc.storage.bodies import COLUMN_MAX, GENERATION_MAX, SEGMENT_MAX
from xsc.storage.erasure import Buffer, StorageShard
from xsc.storage.held import (
    Found,
    FoundRecord,
    HeldColumn,
    HeldObject,
    HeldRecord,
    HeldState,
    Span,
    Wanted,
)
from xsc.terms.storage_receipt import HeldShard

PUT = "storage.put"
GET = "storage.get"
STAT = "storage.stat"
FIND = "storage.find"
KEEP = "storage.keep"
DELETE = "storage.delete"
TRIM = "storage.trim"
SHARD_BYTES_MAX = SEGMENT_BYTES
GET_MAX = 64
"""Shards in one get."""
PATH_MAX = 64
"""Hashes that prove leaves of one shard: two a level, more than any shard has."""
PLACEMENTS_MAX = 16
COLUMNS_MAX = 4096
LEASES_TOLD_MAX = 4096


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """Sealed manifest and signed placement, as hosts keep them."""

    sealed: bytes
    sealed_root: bytes
    manifest_hash: bytes
    placement: bytes
    placement_id: bytes
    placement_generation: int
    seal: bytes | None = None
    """The owner's signed seal over this placement and others, where there is one."""


@dataclass(frozen=True, slots=True)
class PutRequest:
    """A checked `storage.put`."""

    lease_id: bytes
    locate: bytes
    generation: int
    shards: tuple[tuple[int, StorageShard], ...]
    """Segment and shard."""
    sealed: Buffer | None
    placement: bytes | None
    seal: bool = False
    """Whether its receipt may stand under a seal with others."""
    placement_seal: bytes | None = None
    """The owner's signed seal over the placement and others."""

    @property
    def size_bytes(self) -> int:
        """What it counts for where nothing of it is held yet."""
        size = sum(len(shard.data) for _, shard in self.shards)
        if self.sealed is not None and self.placement is not None:
            size += len(self.sealed) + len(self.placement)
        return size


def _map(value: Value) -> Mapping[str, Value]:
    if not isinstance(value, dict):
        raise RecordInvalid("an item of a list must be a map")
    return value


def put_message(
    lease_id: bytes,
    locate: bytes,
    generation: int,
    shards: Sequence[tuple[int, StorageShard]],
    record: ObjectRecord | None,
) -> tuple[dict[str, Value], list[Part]]:
    """Return header and parts of a `storage.put`."""
    listed: list[Value] = [
        {"segment": segment, "column": shard.column} for segment, shard in shards
    ]
    parts = [Part(shard.data, shard.root) for _, shard in shards]
    if record is not None:
        parts.append(Part(record.sealed, record.sealed_root))
    header: dict[str, Value] = {
        "lease": lease_id,
        "locate": locate,
        "generation": generation,
        "shards": listed,
        "placement": None if record is None else record.placement,
        "seal": True,
    }
    if record is not None and record.seal is not None:
        header["placement_seal"] = record.seal
    return header, parts


def read_put(header: Mapping[str, Value], parts: Sequence[Part]) -> PutRequest:
    """Return a `storage.put`, its parts already verified against their roots.

    Raises:
        RecordInvalid, TooLarge: it breaks a rule.
    """
    listed = take_list(header, "shards", most=FRAME_PARTS_MAX)
    placement = take_opt_bytes(header, "placement")
    carried = 0 if placement is None else 1
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
    sealed = None if placement is None else parts[-1].data
    if sealed is not None and len(sealed) > MANIFEST_BYTES_MAX:
        raise TooLarge(f"a sealed manifest has at most {MANIFEST_BYTES_MAX} bytes")
    return PutRequest(
        take_bytes(header, "lease", size=ID_BYTES),
        take_bytes(header, "locate", size=ID_BYTES),
        take_int(header, "generation", most=GENERATION_MAX),
        tuple(shards),
        sealed,
        placement,
        # Older releases do not know of seals, and send nothing.
        seal="seal" in header and take_bool(header, "seal"),
        placement_seal=take_opt_bytes({"placement_seal": None} | dict(header), "placement_seal"),
    )


def get_message(locate: bytes, generation: int, wanted: Sequence[Wanted]) -> dict[str, Value]:
    """Return the header of a `storage.get`."""
    listed: list[Value] = [_asked(want) for want in wanted]
    return {"locate": locate, "generation": generation, "shards": listed}


def _asked(want: Wanted) -> dict[str, Value]:
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
            if 0 < size <= SHARD_BYTES_MAX and 0 <= first < stop <= leaf_count(size):
                return Span(first, stop, size)
    raise RecordInvalid("leaves are the first, the one after the last, and the size of the shard")


def read_get(header: Mapping[str, Value]) -> tuple[bytes, int, list[Wanted]]:
    """Return locate id, generation and what is wanted.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    wanted = []
    for item in take_list(header, "shards", most=GET_MAX):
        fields = _map(item)
        wanted.append(
            Wanted(
                take_int(fields, "segment", most=SEGMENT_MAX),
                take_int(fields, "column", most=COLUMN_MAX),
                take_bytes(fields, "root", size=ID_BYTES),
                _span(fields),
            )
        )
    return (
        take_bytes(header, "locate", size=ID_BYTES),
        take_int(header, "generation", most=GENERATION_MAX),
        wanted,
    )


def keep_message(
    lease_id: bytes, locate: bytes, generation: int, shards: Sequence[HeldShard]
) -> dict[str, Value]:
    """Return the header of a `storage.keep`: a put of what the host has already."""
    wanted = [Wanted(item.segment, item.column, item.root) for item in shards]
    return {"lease": lease_id, **get_message(locate, generation, wanted)}


def read_keep(header: Mapping[str, Value]) -> tuple[bytes, bytes, int, list[Wanted]]:
    """Return lease, locate id, generation and what is to be kept.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    locate, generation, wanted = read_get(header)
    if not wanted or any(item.span is not None for item in wanted):
        raise RecordInvalid("whole shards are kept, one at least")
    if len({(item.segment, item.column) for item in wanted}) != len(wanted):
        raise RecordInvalid("a shard is named twice")
    return take_bytes(header, "lease", size=ID_BYTES), locate, generation, wanted


def get_answer(found: Sequence[Found]) -> tuple[dict[str, Value], list[Buffer]]:
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
        if not isinstance(item, bytes) or len(item) != ROOT_BYTES:
            raise RecordInvalid("a proof consists of hashes")
        path.append(item)
    return tuple(path)


def _holds(data: Buffer, span: Span, root: bytes, path: tuple[bytes, ...]) -> bool:
    return len(data) == span.size_bytes and span_holds(
        root, span.shard_bytes, span.first, data, path
    )


def read_got(
    header: Mapping[str, Value], parts: Sequence[Buffer], wanted: Sequence[Wanted]
) -> list[Found]:
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
                    root_of(piece) == want.root
                    if want.span is None
                    else _holds(piece, want.span, want.root, _path(next(paths)))
                )
                found.append(Found("ok", piece) if good else Found("corrupt"))
            case "missing":
                found.append(Found("missing"))
            case "corrupt":
                found.append(Found("corrupt"))
            case _:
                raise RecordInvalid("a shard is in no known state")
    return found


def stat_message(locate: bytes, generation: int, manifest_hash: bytes) -> dict[str, Value]:
    """Return the header of a `storage.stat`."""
    return {"locate": locate, "generation": generation, "manifest": manifest_hash}


def read_stat(header: Mapping[str, Value]) -> tuple[bytes, int, bytes]:
    """Return locate id, generation and manifest hash.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    return (
        take_bytes(header, "locate", size=ID_BYTES),
        take_int(header, "generation", most=GENERATION_MAX),
        take_bytes(header, "manifest", size=ID_BYTES),
    )


def stat_answer(held: HeldObject, caller: bytes) -> dict[str, Value]:
    """Return the answer to a `storage.stat` of that caller."""
    columns: list[Value] = [
        {
            "customer": item.customer,
            "column": item.column,
            "segments": item.segments,
            "digest": item.digest,
            "damaged": item.damaged,
            "ends_ms": item.ends_ms,
            **({"bad": [*item.bad]} if item.bad else {}),
        }
        for item in held.columns[:COLUMNS_MAX]
    ]
    records: list[Value] = [
        {"customer": item.customer, "rank": item.rank, "ends_ms": item.ends_ms}
        for item in held.records[:COLUMNS_MAX]
    ]
    mine: list[Value] = [[lease, size] for lease, size in held.sizes_of(caller)]
    return {
        "record": held.record,
        "rank": held.rank,
        "columns": columns,
        "records": records,
        # A part of them would say that nothing lies under the others.
        **({"mine": mine} if len(mine) <= LEASES_TOLD_MAX else {}),
    }


def _end(fields: Mapping[str, Value]) -> int | None:
    """Return when a lease ends; releases before this field never say so."""
    return None if fields.get("ends_ms") is None else take_int(fields, "ends_ms")


def _bad(fields: Mapping[str, Value]) -> tuple[int, ...]:
    """Return which segments are damaged; releases before this field never say so."""
    listed = take_list({"bad": []} | dict(fields), "bad", most=DAMAGED_TOLD_MAX)
    return tuple(take_int({"bad": segment}, "bad", most=SEGMENT_MAX) for segment in listed)


def _mine(header: Mapping[str, Value]) -> tuple[tuple[bytes, int], ...] | None:
    """Return what lies there for the caller by lease; releases before this field never say so."""
    if "mine" not in header:
        return None
    found: dict[bytes, int] = {}
    for item in take_list(header, "mine", most=LEASES_TOLD_MAX):
        match item:
            case [bytes(lease), int(size)] if len(lease) == ID_BYTES and 0 <= size < 2**63:
                found[lease] = size
            case _:
                raise RecordInvalid("an item is not a lease and the bytes under it")
    return tuple(found.items())


def read_stated(header: Mapping[str, Value]) -> HeldObject:
    """Return what a peer says that it holds.

    Raises:
        RecordInvalid: the answer breaks a rule.
    """
    record = take_str(header, "record")
    if record not in ("ok", "missing", "corrupt"):
        raise RecordInvalid("the record is in no known state")
    columns = []
    for item in take_list(header, "columns", most=COLUMNS_MAX):
        fields = _map(item)
        columns.append(
            HeldColumn(
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
    for item in take_list(header, "records", most=COLUMNS_MAX) if "records" in header else []:
        fields = _map(item)
        customer = take_bytes(fields, "customer", size=ID_BYTES)
        records.append(HeldRecord(customer, take_int(fields, "rank"), _end(fields)))
    return HeldObject(
        tuple(columns),
        cast(HeldState, record),
        take_int(header, "rank"),
        tuple(records),
        mine=_mine(header),
    )


def delete_message(locate: bytes, *, final: bool) -> dict[str, Value]:
    """Return the header of a `storage.delete`."""
    return {"locate": locate, "final": final}


def read_delete(header: Mapping[str, Value]) -> tuple[bytes, bool]:
    """Return the locate id, and whether nothing of the object may come afterwards.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    # Releases before this field never say so.
    final = "final" in header and take_bool(header, "final")
    return take_bytes(header, "locate", size=ID_BYTES), final


def trim_message(locate: bytes, columns: Collection[int]) -> dict[str, Value]:
    """Return the header of a `storage.trim`."""
    listed: list[Value] = [*sorted(columns)]
    return {"locate": locate, "columns": listed}


def read_trim(header: Mapping[str, Value]) -> tuple[bytes, frozenset[int]]:
    """Return locate id, and the columns to be deleted.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    listed = take_list(header, "columns", most=COLUMN_MAX + 1)
    columns = [take_int({"column": column}, "column", most=COLUMN_MAX) for column in listed]
    return take_bytes(header, "locate", size=ID_BYTES), frozenset(columns)


def trim_answer(freed: Mapping[bytes, int]) -> dict[str, Value]:
    """Return the answer to a `storage.trim`."""
    listed: list[Value] = [
        {"lease": lease_id, "size": size} for lease_id, size in sorted(freed.items())
    ]
    return {"freed": listed}


def read_trimmed(header: Mapping[str, Value]) -> dict[bytes, int]:
    """Return the bytes that a host says it freed under each lease.

    Raises:
        RecordInvalid: the answer breaks a rule.
    """
    rows = [_map(item) for item in take_list(header, "freed", most=COLUMNS_MAX)]
    return {take_bytes(row, "lease", size=ID_BYTES): take_int(row, "size") for row in rows}


def find_message(locate: bytes, manifest_hash: bytes) -> dict[str, Value]:
    """Return the header of a `storage.find`."""
    return {"locate": locate, "manifest": manifest_hash}


def read_find(header: Mapping[str, Value]) -> tuple[bytes, bytes]:
    """Return locate id and manifest hash.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    return (
        take_bytes(header, "locate", size=ID_BYTES),
        take_bytes(header, "manifest", size=ID_BYTES),
    )


def find_answer(found: FoundRecord | None) -> tuple[dict[str, Value], list[Buffer]]:
    """Return the answer to a `storage.find`."""
    if found is None:
        return {"placements": []}, []
    placements: list[Value] = list(found.placements[:PLACEMENTS_MAX])
    return {"placements": placements}, [found.sealed]


def read_found(header: Mapping[str, Value], parts: Sequence[Buffer]) -> FoundRecord | None:
    """Return what a peer found, unverified.

    Raises:
        RecordInvalid: the answer breaks a rule.
        TooLarge: a placement is over its bound.
    """
    placements = []
    for item in take_list(header, "placements", most=PLACEMENTS_MAX):
        if not isinstance(item, bytes):
            raise RecordInvalid("a placement must be bytes")
        if len(item) > RECORD_BYTES_MAX:
            raise TooLarge("a placement is over its bound")
        placements.append(item)
    if len(parts) != bool(placements):
        raise RecordInvalid("the answer must have a manifest exactly where it has placements")
    return FoundRecord(parts[0], tuple(placements)) if placements else None
