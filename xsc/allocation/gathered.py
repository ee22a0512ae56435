"""Canonical bytes of all that a round follows from, so that a program can be given it.

They have each published value with the record that signs it. Of earlier clearings they have what a
round reads: what was granted, and not what was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from xsc.allocation.clearing_record import Published
from xsc.allocation.deciding import Granted
from xsc.allocation.granting import Cleared, Inputs, Key, Turn
from xsc.allocation.recognition import read_weights
from xsc.base.encoding import Value, encode
from xsc.base.limits import (
    COMMITMENT_BYTES_MAX,
    GATHERED_BYTES_MAX,
    PPM,
    SPACE_EVIDENCE_BYTES_MAX,
)
from xsc.identity.envelope import Count, Id32, Record
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import (
    ClearingRecord,
    SlotAllocationRecord,
    SlotDenominators,
    SpaceValue,
)
from xsc.terms.quote import Kind, SlotId
from xsc.terms.slot import Commitment, EntitlementKey

_Record = Annotated[bytes, Field(max_length=SPACE_EVIDENCE_BYTES_MAX)]
_Value = Annotated[bytes, Field(max_length=COMMITMENT_BYTES_MAX)]
_Said = tuple[Id32, _Record, _Value] | tuple[Id32, _Record, _Value, _Record, _Value]
"""A node, its commitment with the record that signs it, and its recognition where it has one."""
_Earlier = tuple[Id32, Id32, bytes, tuple[tuple[Id32, Count, Count, Count], ...]]
"""A clearing: its inputs' hash, its id, its record in brief, and its turns."""


_Drawn = tuple[SlotId, Count, Id32, SlotId, Count]
"""Slot, start of its window, customer, need and steps."""


class Gathered(Record):
    """All that a round follows from, as its bytes have it."""

    KIND: ClassVar[str] = "gathered"

    now_ms: Count
    own: _Said
    others: tuple[_Said, ...]
    theirs: tuple[tuple[Id32, Annotated[int, Field(gt=0, le=PPM)]], ...]
    drawn: tuple[_Drawn, ...]
    pinned: tuple[_Drawn, ...]
    credit: tuple[tuple[Id32, int], ...]
    free: dict[Kind, Count]
    before: tuple[tuple[SlotId, Count, _Earlier], ...]
    is_pending: bool


class _Granted(Record):
    """What is granted, as its bytes have it."""

    KIND: ClassVar[str] = "granted"

    slots: tuple[SlotDenominators, ...]
    lines: tuple[SlotAllocationRecord, ...]


def _said(each: Published) -> Value:
    mine, theirs = each.commitment_value, each.recognition_value
    told: list[Value] = [each.node, mine.record, mine.value]
    return told if theirs is None else [*told, theirs.record, theirs.value]


def _published(found: _Said) -> Published:
    node, record, value, *rest = found
    commitment = SpaceValue(record=record, value=value)
    said = Commitment.read(value) if value else Commitment()
    if not rest:
        return Published(node, said, commitment)
    recognition = SpaceValue(record=rest[0], value=rest[1])
    return Published(node, said, commitment, read_weights(node, rest[1]), recognition)


def _cleared(each: Cleared) -> Value:
    """Return what a round reads of an earlier clearing."""
    served = (
        one.model_copy(update={"eligible": ()}) for one in each.record.participants if one.lines
    )
    brief = each.record.model_copy(update={"participants": tuple(served), "left_out": ()})
    turns: list[Value] = [
        [customer, turn.offered_ms, turn.lapses, turn.paused_until_ms]
        for customer, turn in sorted(each.turns.items())
    ]
    return [each.inputs, each.id, brief.to_bytes(), turns]


def _earlier(found: _Earlier) -> Cleared:
    inputs, record_id, record, turns = found
    return Cleared(
        inputs,
        ClearingRecord.from_bytes(record, size_max=GATHERED_BYTES_MAX),
        record_id,
        {customer: Turn(*turn) for customer, *turn in turns},
    )


def _rows(drawn: Mapping[EntitlementKey, int]) -> list[Value]:
    return [[*key[1:], steps] for key, steps in sorted(drawn.items())]


def _of_rows(provider: bytes, rows: Iterable[_Drawn]) -> dict[EntitlementKey, int]:
    return {
        EntitlementKey(provider, slot, start, node, need): steps
        for slot, start, node, need, steps in rows
    }


def to_bytes(inputs: Inputs) -> bytes:
    """Return the canonical bytes of what a round follows from."""
    told = {customer for each in inputs.before.values() for customer in each.turns}
    told |= inputs.credit.keys()
    before: list[Value] = [
        [slot, start, _cleared(each)] for (slot, start), each in sorted(inputs.before.items())
    ]
    drawn, pinned = _rows(inputs.drawn), _rows(inputs.pinned)
    theirs: list[Value] = [[peer, ppm] for peer, ppm in sorted(inputs.theirs.items())]
    credit: list[Value] = [[peer, micro] for peer, micro in sorted(inputs.credit.items())]
    return encode(
        {
            "v": Gathered.VERSION,
            "now_ms": inputs.now_ms,
            "own": _said(inputs.own),
            # All others neither take part, nor are asked what they still need.
            "others": [_said(each) for node, each in sorted(inputs.others.items()) if node in told],
            "theirs": theirs,
            "drawn": drawn,
            "pinned": pinned,
            "credit": credit,
            "free": {str(kind): amount for kind, amount in inputs.free.items()},
            "before": before,
            "is_pending": inputs.is_pending,
        }
    )


def from_bytes(raw: bytes) -> Inputs:
    """Return what a round follows from.

    Raises:
        TooLarge, RecordInvalid: the bytes are of no such thing.
    """
    found = Gathered.from_bytes(raw, size_max=GATHERED_BYTES_MAX)
    own = _published(found.own)
    others = [_published(each) for each in found.others]
    before: dict[Key, Cleared] = {
        (slot, start): _earlier(each) for slot, start, each in found.before
    }
    return Inputs(
        now_ms=found.now_ms,
        own=own,
        others={each.node: each for each in others},
        theirs=dict(found.theirs),
        drawn=_of_rows(own.node, found.drawn),
        pinned=_of_rows(own.node, found.pinned),
        credit=dict(found.credit),
        free=found.free,
        before=before,
        is_pending=found.is_pending,
    )


class Part(NamedTuple):
    """A value of a space that was gathered, and the record that signs it."""

    owner: bytes
    path: str
    record: bytes
    value: bytes


def parts_of(raw: bytes) -> list[Part]:
    """Return the values of spaces that were gathered, those of this node first.

    Raises:
        TooLarge, RecordInvalid: as `from_bytes`.
    """
    gathered = Gathered.from_bytes(raw, size_max=GATHERED_BYTES_MAX)
    found = []
    for node, *said in (gathered.own, *gathered.others):
        paths = (UserSpacePaths.COMMITMENT, UserSpacePaths.RECOGNITION)
        for path, record, value in zip(paths, said[::2], said[1::2], strict=False):
            if record:
                found.append(Part(node, path, record, value))
    return found


def granted_bytes(granted: Granted) -> bytes:
    """Return the canonical bytes of what was granted."""
    return _Granted(slots=granted.slots, lines=granted.lines).to_bytes()


def read_granted(raw: bytes) -> Granted:
    """Return what was granted.

    Raises:
        TooLarge, RecordInvalid: the bytes are of no such thing.
    """
    found = _Granted.from_bytes(raw, size_max=GATHERED_BYTES_MAX)
    return Granted(found.slots, found.lines)
