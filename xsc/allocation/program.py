"""The allocation program: canonical bytes of all that a round follows from, and its functions.

The functions are given bytes and give bytes, so that they can be run again from their provenance.
The bytes have each published value with the record that signs it. What was granted before is not in
them: the program is given the last state beside. The last round is remembered, so that a node
computes nothing twice.

Damping follows from what a node was granted beyond its needs. Under `proportional` the factor
scales needs, as in the original. Elsewhere it limits how fast new asks are published, and is no
entitlement. Convergence is whether what a node grants has settled (docs/design/allocation.md, G5,
G6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias

from pydantic import Field

from xsc.allocation.clearing_record import Published, read_state
from xsc.allocation.granting import Inputs, Outcome, SlotRoom, clear_all
from xsc.allocation.recognition import mutual_ppm
from xsc.base.limits import DAMPING_HISTORY_MAX, GATHERED_BYTES_MAX, PPM
from xsc.base.units import ceil_div
from xsc.identity.envelope import Count, Id32, Record
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import SpaceValue, TwoTierAllocationState
from xsc.terms.quote import Kind, SlotId
from xsc.terms.slot import EntitlementKey

SMOOTH_PPM: Final = PPM
MODERATE_PPM: Final = 800_000
OSCILLATING_PPM: Final = 500_000

OVER_MAX: Final = 2**31 - 1
"""What is beyond needs counts up to here: a ring of i32 has it."""

History: TypeAlias = tuple[tuple[int, int], ...]
"""What was granted beyond the needs, in ppm of them, and when in milliseconds, the oldest first."""
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


def over_allocated(needs: Mapping[bytes, int], received: Mapping[bytes, int]) -> int:
    """Return what is received beyond each need, in ppm of it, in all.

    One need's excess serves no other, and steps of bytes and of fuel do not add up.
    """
    return sum(
        max(0, units - needs[need]) * PPM // needs[need]
        for need, units in received.items()
        if need in needs
    )


def observe(history: History, over: int, now_ms: int) -> History:
    """Return the history with one more computation.

    The original keeps three of the last 30 s, or the last three where these are fewer: the last
    three in both cases.
    """
    return (*history, (min(over, OVER_MAX), now_ms))[-DAMPING_HISTORY_MAX:]


def factor_ppm(history: History) -> int:
    """Return the factor of a history.

    Up and down again, or down and up, oscillates; so does what is over-allocated by the same
    amount each time. What never rises is smooth, and so are less than three computations.
    """
    if len(history) < DAMPING_HISTORY_MAX:
        return SMOOTH_PPM
    first, second, third = (over for over, _ in history[-DAMPING_HISTORY_MAX:])
    if first < second > third or first > second < third or first == second == third > 0:
        return OSCILLATING_PPM
    return SMOOTH_PPM if first >= second >= third else MODERATE_PPM


def publish_delay_ms(debounce_ms: int, damping_ppm: int) -> int:
    """Return how long a new ask waits before it is published: the longer, the more it swings."""
    assert damping_ppm > 0, "no history gives 0"
    return ceil_div(debounce_ms * PPM, damping_ppm)


def state_after(
    inputs: Inputs,
    granted: TwoTierAllocationState,
    last: TwoTierAllocationState,
    damping_ppm: int,
) -> TwoTierAllocationState:
    """Return the state that is published.

    Args:
        inputs: what the outcome followed from.
        granted: what `clear_all` gave.
        last: what was published before.
        damping_ppm: the factor of the own history.
    """
    weights = inputs.own.weights
    mutual = {peer: mutual_ppm(weights.get(peer, 0), ppm) for peer, ppm in inputs.theirs.items()}
    before, now = ({each.clearing for each in state.slot_denominators} for state in (last, granted))
    changed = ceil_div(len(before ^ now) * PPM, max(1, len(before | now)))
    changes = (*last.convergence_history, (changed, inputs.now_ms))
    return granted.model_copy(
        update={
            "mr_values": tuple(sorted((peer, ppm) for peer, ppm in mutual.items() if ppm)),
            "damping_factor": damping_ppm,
            "damping_history": inputs.own.commitment.damping_history,
            # While a clearing is the same, no denominator and no level of it moves at all.
            "converged": changed == 0 and not inputs.is_pending,
            "convergence_history": changes[-DAMPING_HISTORY_MAX:],
        }
    )


class Program(Protocol):
    """The allocation program, which serves in place of the direct call of the rule."""

    fault: str
    """Why it does not serve, or ''."""

    def run(self, given: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return its outputs; None where it fails."""

    def writes(self) -> Mapping[str, bytes | None]:
        """Return what is written with them, by path of the own space."""

    def wrote(self) -> None:
        """Go on from what was written."""

    def undo(self, fault: str = "") -> None:
        """Begin again from what was written last; `fault` says why it was not written."""


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
