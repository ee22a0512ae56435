"""Counts what a customer may do so often within a time, where that cannot be billed."""

from __future__ import annotations

from collections import deque


class Tally:
    """What each customer did, not longer ago than it counts.

    Args:
        most: how often a customer may do it.
        within_ms: within this time.
        own: the customer that is refused nothing: this node.
    """

    def __init__(self, most: int, within_ms: int, own: bytes = b"") -> None:
        self._most = most
        self._within_ms = within_ms
        self._own = own
        self._times: dict[bytes, deque[int]] = {}

    def note(self, customer: bytes, now_ms: int) -> None:
        """Note that a customer did it once more.

        Args:
            customer: who.
            now_ms: by a clock that never goes back.
        """
        since_ms = now_ms - self._within_ms
        for known in [each for each, times in self._times.items() if times[-1] < since_ms]:
            del self._times[known]
        if customer != self._own:
            self._times.setdefault(customer, deque(maxlen=self._most)).append(now_ms)

    def wait_ms(self, customer: bytes, now_ms: int) -> int:
        """Return how long a customer has to wait until it may do it again, 0 where it need not."""
        times = self._times.get(customer)
        if times is None or len(times) < self._most:
            return 0
        return max(0, times[0] + self._within_ms - now_ms)
