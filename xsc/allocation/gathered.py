"""Canonical bytes of all that a round follows from, so that a program can be given it.

They have each published value with the record that signs it. What was granted before is not in
them: the program is given the last state beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from xsc.allocation.clearing_record import Published
from xsc.allocation.granting import Inputs
from xsc.allocation.recognition import read_weights
from xsc.base.limits import GATHERED_BYTES_MAX, PPM
from xsc.identity.envelope import Count, Id32, Record
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import SpaceValue
from xsc.terms.quote import Kind, SlotId
from xsc.terms.slot import Commitment, EntitlementKey

_Said = tuple[Id32, SpaceValue, SpaceValue | None]
"""A node, its commitment, and its recognition where it has one."""
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
    is_pending: bool

    @classmethod
    def read(cls, raw: bytes) -> Gathered:
        """Return what bytes have.

        Raises:
            TooLarge, RecordInvalid: they are of no such thing.
        """
        return cls.from_bytes(raw, size_max=GATHERED_BYTES_MAX)


def _said(each: Published) -> _Said:
    return each.node, each.commitment_value, each.recognition_value


def _published(node: bytes, commitment: SpaceValue, recognition: SpaceValue | None) -> Published:
    said = Commitment.read(commitment.value) if commitment.value else Commitment()
    weights = {} if recognition is None else read_weights(node, recognition.value)
    return Published(node, said, commitment, weights, recognition)


def _rows(drawn: Mapping[EntitlementKey, int]) -> tuple[_Drawn, ...]:
    return tuple((*key[1:], steps) for key, steps in sorted(drawn.items()))


def _of_rows(provider: bytes, rows: Iterable[_Drawn]) -> dict[EntitlementKey, int]:
    return {EntitlementKey(provider, *row[:4]): row[4] for row in rows}


def to_bytes(inputs: Inputs) -> bytes:
    """Return the canonical bytes of what a round follows from."""
    return Gathered(
        now_ms=inputs.now_ms,
        own=_said(inputs.own),
        others=tuple(_said(each) for _, each in sorted(inputs.others.items())),
        theirs=tuple(sorted(inputs.theirs.items())),
        drawn=_rows(inputs.drawn),
        pinned=_rows(inputs.pinned),
        credit=tuple(sorted(inputs.credit.items())),
        free=dict(inputs.free),
        is_pending=inputs.is_pending,
    ).to_bytes()


def from_bytes(raw: bytes) -> Inputs:
    """Return what a round follows from.

    Raises:
        TooLarge, RecordInvalid: the bytes are of no such thing.
    """
    found = Gathered.read(raw)
    own = _published(*found.own)
    return Inputs(
        now_ms=found.now_ms,
        own=own,
        others={said[0]: _published(*said) for said in found.others},
        theirs=dict(found.theirs),
        drawn=_of_rows(own.node, found.drawn),
        pinned=_of_rows(own.node, found.pinned),
        credit=dict(found.credit),
        free=found.free,
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
        TooLarge, RecordInvalid: the bytes are of no such thing.
    """
    gathered = Gathered.read(raw)
    paths = (UserSpacePaths.COMMITMENT, UserSpacePaths.RECOGNITION)
    return [
        Part(node, path, value.record, value.value)
        for node, *said in (gathered.own, *gathered.others)
        for path, value in zip(paths, said, strict=True)
        if value is not None and value.record
    ]
