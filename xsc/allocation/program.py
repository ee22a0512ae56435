"""The allocation program: canonical bytes of all that a round follows from, and its functions.

The functions are given bytes and give bytes, so that they can be run again from their provenance.
The bytes have each published value with the record that signs it. What was granted before is not in
them: the program is given the last state beside. The last round is remembered, so that a node
computes nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, Final, NamedTuple, TypeAlias

from pydantic import Field

from xsc.allocation.clearing_record import Published, read_state
from xsc.allocation.granting import Inputs, Outcome, clear_all
from xsc.allocation.ports import SlotRoom
from xsc.allocation.settling import factor_ppm, state_after
from xsc.base.limits import GATHERED_BYTES_MAX, PPM
from xsc.identity.envelope import Count, Id32, Record
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import SpaceValue
from xsc.terms.quote import Kind, SlotId
from xsc.terms.slot import EntitlementKey

NOBODY: Final = -1
"""In the ring of damping: no computation yet."""
Room: TypeAlias = Callable[[Mapping[Kind, int], int], SlotRoom]
"""Returns what so much has room for, at a time."""
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
    own = Published.read(*found.own)
    return Inputs(
        now_ms=found.now_ms,
        own=own,
        others={said[0]: Published.read(*said) for said in found.others},
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


class AllocationProgram:
    """What the computations of one node's allocation program call.

    Args:
        room: the market's rule for what can be granted.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._last: tuple[bytes, bytes, Inputs, Outcome] | None = None
        """The last round: what was gathered, the state before it, and what they came to."""

    def gather(self, inputs: Inputs, last: bytes, outcome: Outcome) -> bytes:
        """Return the bytes of what a round follows from, whose outcome is known by now."""
        gathered = to_bytes(inputs)
        self._last = (gathered, last, inputs, outcome)
        return gathered

    def _round(self, gathered: bytes, last: bytes) -> tuple[Inputs, Outcome]:
        # A replay in another thread may remember another one meanwhile.
        known = self._last
        if known is not None and known[:2] == (gathered, last):
            return known[2:]
        inputs = from_bytes(gathered)
        room = self._room(inputs.free, inputs.now_ms)
        outcome = clear_all(inputs, read_state(last), room)
        self._last = (gathered, last, inputs, outcome)
        return inputs, outcome

    def clear(self, gathered: bytes, last: bytes) -> bytes:
        """Clear the windows, and return what of a state is granted."""
        return self._round(gathered, last)[1].state.to_bytes()

    def damping(self, over: Sequence[int]) -> int:
        """Return the factor of a ring of the last computations, in ppm."""
        return factor_ppm(tuple((units, 0) for units in over if units != NOBODY))

    def state(self, granted: bytes, last: bytes, damping: int, gathered: bytes) -> bytes:
        """Return the state that is published."""
        inputs, _ = self._round(gathered, last)
        return state_after(inputs, read_state(granted), read_state(last), damping).to_bytes()
