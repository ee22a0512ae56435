"""Canonical bytes of all that a round follows from, so that a program can be given it.

They have each published value with the record that signs it. Of earlier clearings they have what a
round reads: who took part with what it published, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from xsc.allocation.clearing_record import Published
from xsc.allocation.deciding import Granted, Inputs
from xsc.allocation.granting import Cleared, Grant
from xsc.allocation.queues import Key
from xsc.allocation.recognition import read_weights
from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, XscError
from xsc.base.limits import GATHERED_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import (
    ClearingRecord,
    SlotAllocationRecord,
    SlotDenominators,
    SpaceValue,
)
from xsc.terms.slot import Commitment

_VERSION: Final = 1
_NOTHING: Final = SpaceValue(record=b"", value=b"")


def _said(each: Published) -> Value:
    mine, theirs = each.commitment_value, each.recognition_value
    told: list[Value] = [each.node, mine.record, mine.value]
    return told if theirs is None else [*told, theirs.record, theirs.value]


def _published(found: Any) -> Published:  # noqa: ANN401
    node, record, value, *rest = found
    commitment = SpaceValue(record=record, value=value)
    said = Commitment.read(value) if value else Commitment()
    if not rest:
        return Published(node, said, commitment)
    recognition = SpaceValue(record=rest[0], value=rest[1])
    return Published(node, said, commitment, read_weights(node, rest[1]), recognition)


def _cleared(each: Cleared) -> Value:
    """Return what a round reads of an earlier clearing."""
    record = each.record
    brief = record.model_copy(
        update={
            "commitment": _NOTHING,
            "recognition": None,
            "participants": tuple(
                one.model_copy(
                    update={"commitment": _NOTHING, "recognition": None, "eligible": (), "left": ()}
                )
                for one in record.participants
                if one.lines
            ),
        }
    )
    grants: list[Value] = [
        [customer, need, grant.number, grant.granted_ms]
        for (customer, need), grant in sorted(each.grants.items())
    ]
    return [each.inputs, each.id, brief.to_bytes(), grants]


def _earlier(found: Any) -> Cleared:  # noqa: ANN401
    inputs, record_id, record, grants = found
    return Cleared(
        inputs,
        ClearingRecord.from_bytes(record, size_max=GATHERED_BYTES_MAX),
        record_id,
        {(customer, need): Grant(number, at_ms) for customer, need, number, at_ms in grants},
    )


def to_bytes(inputs: Inputs) -> bytes:
    """Return the canonical bytes of what a round follows from."""
    told = {customer for each in inputs.before.values() for customer, _ in each.grants}
    told |= inputs.credit.keys()
    before: list[Value] = [
        [slot, start, _cleared(each)] for (slot, start), each in sorted(inputs.before.items())
    ]
    drawn: list[Value] = [[*key, quanta] for key, quanta in sorted(inputs.drawn.items())]
    theirs: list[Value] = [[peer, ppm] for peer, ppm in sorted(inputs.theirs.items())]
    credit: list[Value] = [[peer, micro] for peer, micro in sorted(inputs.credit.items())]
    return encode(
        {
            "v": _VERSION,
            "now_ms": inputs.now_ms,
            "salt": inputs.salt,
            "own": _said(inputs.own),
            # All others neither take part, nor are asked what they still need.
            "others": [_said(each) for node, each in sorted(inputs.others.items()) if node in told],
            "theirs": theirs,
            "drawn": drawn,
            "credit": credit,
            "free": {str(kind): amount for kind, amount in inputs.free.items()},
            "before": before,
            "is_pending": inputs.is_pending,
        }
    )


def _fields(raw: bytes) -> dict[str, Any]:
    found: Any = decode(raw, size_max=GATHERED_BYTES_MAX)
    if not isinstance(found, dict) or found.get("v") != _VERSION:
        raise RecordInvalid("what was gathered is of an unknown version")
    return found


def from_bytes(raw: bytes) -> Inputs:
    """Return what a round follows from.

    Raises:
        TooLarge, RecordInvalid: the bytes are of no such thing.
    """
    try:
        found = _fields(raw)
        others = [_published(each) for each in found["others"]]
        before: dict[Key, Cleared] = {
            (slot, start): _earlier(each) for slot, start, each in found["before"]
        }
        return Inputs(
            now_ms=found["now_ms"],
            salt=found["salt"],
            own=_published(found["own"]),
            others={each.node: each for each in others},
            theirs=dict(found["theirs"]),
            drawn={
                (slot, start, customer, need): quanta
                for slot, start, customer, need, quanta in found["drawn"]
            },
            credit=dict(found["credit"]),
            free=found["free"],
            before=before,
            is_pending=found["is_pending"],
        )
    except XscError:
        raise
    except (KeyError, TypeError, ValueError) as fault:
        raise RecordInvalid(f"what was gathered is malformed: {fault}") from None


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
    inputs, found = from_bytes(raw), []
    for each in (inputs.own, *inputs.others.values()):
        said: Mapping[str, SpaceValue | None] = {
            UserSpacePaths.COMMITMENT: each.commitment_value,
            UserSpacePaths.RECOGNITION: each.recognition_value,
        }
        found += [
            Part(each.node, path, value.record, value.value)
            for path, value in said.items()
            if value is not None and value.record
        ]
    return found


def granted_bytes(granted: Granted) -> bytes:
    """Return the canonical bytes of what was granted."""
    slots: list[Value] = [each.to_value() for each in granted.slots]
    lines: list[Value] = [each.to_value() for each in granted.lines]
    return encode({"v": _VERSION, "slots": slots, "lines": lines, "is_fresh": granted.is_fresh})


def read_granted(raw: bytes) -> Granted:
    """Return what was granted.

    Raises:
        TooLarge, RecordInvalid: the bytes are of no such thing.
    """
    found = _fields(raw)
    try:
        return Granted(
            tuple(SlotDenominators.from_value(each) for each in found["slots"]),
            tuple(SlotAllocationRecord.from_value(each) for each in found["lines"]),
            found["is_fresh"],
        )
    except (KeyError, TypeError) as fault:
        raise RecordInvalid(f"what was granted is malformed: {fault}") from None
