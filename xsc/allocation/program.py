"""The functions of the allocation program: each calls a rule.

They are given bytes and give bytes, so that they can be run again from their provenance. What was
read or made last is remembered, so that a node does not parse what it has just written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from xsc.allocation.damping import factor_ppm
from xsc.allocation.deciding import Granted, granted_of, state_after
from xsc.allocation.gathered import from_bytes, granted_bytes, read_granted, to_bytes
from xsc.allocation.granting import Inputs, Outcome, clear_all
from xsc.allocation.ports import SlotRoom
from xsc.space.limits import VALUE_BYTES_MAX
from xsc.terms.clearing import TwoTierAllocationState
from xsc.terms.quote import Kind

NOBODY: Final = -1
"""In the ring of damping: no computation yet."""
Room = Callable[[Mapping[Kind, int], int], SlotRoom]
"""Returns what so much has room for, at a time."""
T = TypeVar("T")


class _Last(Generic[T]):
    """The bytes that were read or made last, and what they stand for."""

    def __init__(self, read: Callable[[bytes], T]) -> None:
        self._read = read
        self._known: tuple[bytes, T] | None = None

    def note(self, raw: bytes, value: T) -> bytes:
        self._known = raw, value
        return raw

    def get(self, raw: bytes) -> T:
        known = self._known  # a replay in another thread may note something else meanwhile
        if known is None or known[0] != raw:
            known = self._known = raw, self._read(raw)
        return known[1]


def _read_state(raw: bytes) -> TwoTierAllocationState:
    if not raw:
        return TwoTierAllocationState()
    return TwoTierAllocationState.from_bytes(raw, size_max=VALUE_BYTES_MAX)


class AllocationProgram:
    """What the computations of one node's allocation program call.

    Args:
        room: the market's rule for what can be granted.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._inputs = _Last[Inputs](from_bytes)
        self._granted = _Last[Granted](read_granted)
        self._outcomes = _Last[Outcome](self._clear)
        self._states = _Last[TwoTierAllocationState](_read_state)

    def gather(self, inputs: Inputs, outcome: Outcome) -> bytes:
        """Return the bytes of what a round follows from, whose outcome is known by now."""
        gathered = self._inputs.note(to_bytes(inputs), inputs)
        return self._outcomes.note(gathered, outcome)

    def clear(self, gathered: bytes) -> bytes:
        """Clear the windows, and return what is granted."""
        granted = granted_of(self._outcomes.get(gathered))
        return self._granted.note(granted_bytes(granted), granted)

    def _clear(self, gathered: bytes) -> Outcome:
        inputs = self._inputs.get(gathered)
        return clear_all(inputs, self._room(inputs.free, inputs.now_ms))

    def damping(self, over: Sequence[int]) -> int:
        """Return the factor of a ring of the last computations, in ppm."""
        return factor_ppm(tuple((units, 0) for units in over if units != NOBODY))

    def state(self, granted: bytes, last: bytes, damping: int, gathered: bytes) -> bytes:
        """Return the state that is published."""
        before = self._states.get(last)
        inputs, made = self._inputs.get(gathered), self._granted.get(granted)
        state = state_after(inputs, made, before, damping)
        return self._states.note(state.to_bytes(), state)

    def read_state(self, raw: bytes) -> TwoTierAllocationState:
        """Return the state of its bytes; an empty one where there are none."""
        return self._states.get(raw)
