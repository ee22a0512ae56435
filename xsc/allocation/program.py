"""The functions of the allocation program: each calls a rule.

They are given bytes and give bytes, so that they can be run again from their provenance. What was
read or made last is remembered, so that a node computes nothing twice in a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from xsc.allocation.clearing_record import read_state
from xsc.allocation.damping import factor_ppm
from xsc.allocation.deciding import state_after
from xsc.allocation.gathered import from_bytes, to_bytes
from xsc.allocation.granting import Inputs, Outcome, clear_all
from xsc.allocation.ports import SlotRoom
from xsc.terms.clearing import TwoTierAllocationState
from xsc.terms.quote import Kind

NOBODY: Final = -1
"""In the ring of damping: no computation yet."""
Room = Callable[[Mapping[Kind, int], int], SlotRoom]
"""Returns what so much has room for, at a time."""
K = TypeVar("K")
V = TypeVar("V")
_REMEMBERED: Final = 3
"""A frame reads what is granted and the last state, and makes the next."""


class _Latest(Generic[K, V]):
    """What was read or made last, by what it follows from."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        self._known: tuple[tuple[K, V], ...] = ()

    def note(self, key: K, value: V) -> K:
        # A replay in another thread may note something else meanwhile.
        self._known = ((key, value), *self._known[: _REMEMBERED - 1])
        return key

    def get(self, key: K) -> V:
        for known, value in self._known:
            if known == key:
                return value
        value = self._make(key)
        self.note(key, value)
        return value


class AllocationProgram:
    """What the computations of one node's allocation program call.

    Args:
        room: the market's rule for what can be granted.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._inputs = _Latest[bytes, Inputs](from_bytes)
        self._outcomes = _Latest[tuple[bytes, bytes], Outcome](self._clear)
        self._states = _Latest[bytes, TwoTierAllocationState](read_state)

    def gather(self, inputs: Inputs, last: bytes, outcome: Outcome) -> bytes:
        """Return the bytes of what a round follows from, whose outcome is known by now."""
        gathered = self._inputs.note(to_bytes(inputs), inputs)
        self._outcomes.note((gathered, last), outcome)
        return gathered

    def clear(self, gathered: bytes, last: bytes) -> bytes:
        """Clear the windows, and return what of a state is granted."""
        granted = self._outcomes.get((gathered, last)).state
        return self._states.note(granted.to_bytes(), granted)

    def _clear(self, given: tuple[bytes, bytes]) -> Outcome:
        inputs = self._inputs.get(given[0])
        room = self._room(inputs.free, inputs.now_ms)
        return clear_all(inputs, self.read_state(given[1]), room)

    def damping(self, over: Sequence[int]) -> int:
        """Return the factor of a ring of the last computations, in ppm."""
        return factor_ppm(tuple((units, 0) for units in over if units != NOBODY))

    def state(self, granted: bytes, last: bytes, damping: int, gathered: bytes) -> bytes:
        """Return the state that is published."""
        before, made = self.read_state(last), self.read_state(granted)
        state = state_after(self._inputs.get(gathered), made, before, damping)
        return self._states.note(state.to_bytes(), state)

    def read_state(self, raw: bytes) -> TwoTierAllocationState:
        """Return the state of its bytes; an empty one where there are none."""
        return self._states.get(raw)
