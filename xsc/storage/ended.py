"""Which objects were deleted for good a moment ago: nothing of them may come in afterwards.

A deletion can overtake a put of the same customer: the put's body is still being
received or hashed when the deletion, which has none, is done. Were it stored then,
it would lie there, and be billed, for as long as its lease runs. So the ends of
objects are remembered: the last ENDED_MAX of them, and where they are more, of the
customer that has most the oldest goes, so that nobody can make a host forget what
another one has deleted. Forgetting costs room, never data.
"""

from __future__ import annotations

from xsc.base.limits import ENDED_MAX


class Ended:
    """Objects by customer, in the order in which they ended."""

    def __init__(self, most: int = ENDED_MAX) -> None:
        self._most = most
        self._size = 0
        self._of: dict[bytes, dict[bytes, None]] = {}

    def __len__(self) -> int:
        return self._size

    def note(self, locate: bytes, customer: bytes) -> None:
        """Remember that a customer has deleted an object for good."""
        mine = self._of.setdefault(customer, {})
        if mine.pop(locate, 0) == 0:
            self._size += 1
        mine[locate] = None
        if self._size > self._most:
            customer, most = max(self._of.items(), key=lambda item: len(item[1]))
            del most[next(iter(most))]
            self._size -= 1
            if not most:
                del self._of[customer]

    def has(self, locate: bytes, customer: bytes) -> bool:
        """Say whether a customer has deleted an object for good, as far as is remembered."""
        return locate in self._of.get(customer, ())
