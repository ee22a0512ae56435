"""Checks what the database of a space holds: signatures, values, and what belongs to what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xsc.base.errors import RecordInvalid, StoreDamaged, XscError
from xsc.base.ids import short
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.identity.envelope import open_signed
from xsc.space.record import (
    HEAD_ENVELOPE_BYTES_MAX,
    RECORD_ENVELOPE_BYTES_MAX,
    SpaceHead,
    SpaceRecord,
    check_value,
)
from xsc.space.store import (
    ARCHIVE,
    CLOCK,
    META,
    OWNER_BYTES,
    PROVEN,
    VALUE,
    KeptClock,
    read_archived,
    read_proven,
)

FAULTS_MAX = 1_000
"""Listed; a damaged database can have any number."""


@dataclass(frozen=True, slots=True)
class SpaceAudit:
    """What a check found."""

    records: int
    """Records that are whole, with tombstones."""
    faults: tuple[str, ...]


def audit(db: KeyValue, *, network: bytes) -> SpaceAudit:
    """Check every record, value, head and clock; a node may write meanwhile."""
    records, faults = 0, list[str]()
    try:
        for key, raw in db.scan(META, prefix_end(META)):
            fault = _record_fault(db, key, raw, network)
            if fault is None or db.get(key) != raw:  # replaced since the scan began
                records += 1
            else:
                faults.append(fault)
        faults += _other_faults(db, network)
    except StoreDamaged as fault:
        faults.append(f"the database of the space cannot be read to its end: {fault.message}")
    return SpaceAudit(records, tuple(faults[:FAULTS_MAX]))


def _record_fault(db: KeyValue, key: bytes, raw: bytes, network: bytes) -> str | None:
    """Return what is wrong with a record or its value."""
    owner, path = key[1 : 1 + OWNER_BYTES], key[1 + OWNER_BYTES :]
    try:
        record = open_signed(
            raw, SpaceRecord, network=network, author=owner, size_max=RECORD_ENVELOPE_BYTES_MAX
        ).record
        if record.path.encode() != path:
            raise RecordInvalid("it is of another path")
        value = db.get(VALUE + key[1:])
        if value is not None:
            check_value(record, value)
    except XscError as fault:
        shown = path.decode(errors="backslashreplace")
        return f"the record {short(owner)}:{shown} is damaged: {fault.message}"
    return None


def _other_faults(db: KeyValue, network: bytes) -> Iterator[str]:
    for key, raw in db.scan(PROVEN, prefix_end(PROVEN)):
        owner = key[1 : 1 + OWNER_BYTES]
        try:
            head, _ = read_proven(raw)
            open_signed(
                head, SpaceHead, network=network, author=owner, size_max=HEAD_ENVELOPE_BYTES_MAX
            )
        except XscError as fault:
            yield f"a head of {short(owner)} is damaged: {fault.message}"
    for _, raw in db.scan(ARCHIVE, prefix_end(ARCHIVE)):
        try:
            read_archived(raw)
        except StoreDamaged as fault:
            yield fault.message
    clock = db.get(CLOCK)
    try:
        if clock is not None:
            KeptClock.from_bytes(clock)
    except XscError as fault:
        yield f"the clock of the space is damaged: {fault.message}"
