"""Which objects were deleted for good a moment ago: nothing of them may come in afterwards.

A deletion can overtake a put of the same customer: the put's body is still being
received or hashed when the deletion, which has none, is done. Were it stored then,
it would lie there, and be billed, for as long as its lease runs. So the ends of
objects are remembered: the last ENDED_MAX of them, and where they are more, of the
customer that has most the oldest goes, so that nobody can make a host forget what
another one has deleted. Forgetting costs room, never data.
"""

from __future__ import annotations

from typing import Literal

from xsc.base.bounded import Bounded

TOMBSTONES_MAX = 16_384
"""Deleted objects of which a host takes nothing that was under way meanwhile."""


class Tombstones:
    """Objects by customer, in the order in which they ended."""

    def __init__(self, most: int = TOMBSTONES_MAX) -> None:
        self._known: Bounded[tuple[bytes, bytes], Literal[True]] = Bounded(most)

    def __len__(self) -> int:
        return len(self._known)

    def note(self, locate: bytes, customer: bytes) -> None:
        """Remember that a customer has deleted an object for good."""
        self._known.put((locate, customer), True, customer)

    def has(self, locate: bytes, customer: bytes) -> bool:
        """Say whether a customer has deleted an object for good, as far as is remembered."""
        return (locate, customer) in self._known
